"""The known methods side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from evoquant.api.evolution import as_experiment
from evoquant.config import Experiment
from evoquant.data import ImageBatchSource
from evoquant.errors import UnknownNameError
from evoquant.evaluate import Plan, Workbench, prepare
from evoquant.evaluate.finalist import Finalist, save_finalist
from evoquant.evaluate.fit_finalist import fit_finalist
from evoquant.evaluate.methods import METHODS, PRECISIONS, Method, find_method
from evoquant.evaluate.workbench import load_model, load_splits, transform_of
from evoquant.run.judge import judge
from evoquant.run.plans import read_plan

Split = Literal["selection", "test"]
OnMethod = Callable[[str], None]
"""Told the name of each method when it begins."""


def compare_quantization_methods(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    methods: Sequence[str | Method] = tuple(METHODS),
    precisions: Sequence[str] = PRECISIONS,
    plans: Sequence[str] = (),
    split: Split = "test",
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
    on_method: OnMethod | None = None,
) -> list[dict[str, Any]]:
    """Judge several methods on the same images.

    Args:
        experiment: Model, images and device; see ``run_evolution``.
        methods: Names of ``evoquant.evaluate.methods.METHODS``, or methods of your own; ``erq`` and ``learned`` fit
            weights to a whole plan and take minutes.
        precisions: For methods that exist at each precision: ``w8a8``, ``w6a6``, ``w4a8``, ``w4a4``.
        plans: Besides, plan files or points of runs (``RUN_DIR#knee``), judged with the full stack.
        split: The image set to judge on.
        model: Used instead of the model that the experiment names.
        images: Used instead of its image sets.
        on_method: Told of each method.

    Returns:
        For each ``name``, ``method``, ``precision``, ``seconds`` (making and judging it), ``preparation_seconds``
        (of everything that it shares with others), ``fit`` (what fitting brought, or None) and the figures of
        ``evoquant evaluate``.

    Raises:
        EvoQuantError: What is wrong, and what to do.
    """
    chosen = [find_method(method) if isinstance(method, str) else method for method in methods]
    for name in precisions:
        if name not in PRECISIONS:
            raise UnknownNameError("precision", name, PRECISIONS)
    benches = _Benches(as_experiment(experiment), model, images)
    tell = on_method or _ignore
    rows = [row for method in chosen for row in _rows(method, benches, precisions, split, tell)]
    full = METHODS["full"]
    for source in plans:
        tell(source)
        bench = benches.of(full)
        plan = read_plan(source, bench.captured.graph, bench.classes)
        rows.append(
            {
                "name": source,
                "method": "plan",
                "precision": None,
                "preparation_seconds": benches.seconds(full),
                **judged_plan(bench, plan, split),
            }
        )
    return rows


def _ignore(_name: str) -> None:
    """Nobody listens."""


class _Benches:
    """Prepared models, one for each set of settings, over the same images."""

    def __init__(
        self, experiment: Experiment, model: nn.Module | None, images: Mapping[str, ImageBatchSource] | None
    ) -> None:
        self._experiment = experiment
        self._model = load_model(experiment) if model is None else model
        self._images = images or load_splits(experiment, transform_of(self._model, experiment))
        self._made: list[tuple[Experiment, Workbench, float]] = []

    def of(self, method: Method) -> Workbench:
        """The one with the settings of a method."""
        return self._entry(method)[1]

    def seconds(self, method: Method) -> float:
        """What preparing it took."""
        return self._entry(method)[2]

    def _entry(self, method: Method) -> tuple[Experiment, Workbench, float]:
        wanted = method.applied(self._experiment)
        for entry in self._made:
            if entry[0] == wanted:
                return entry
        started = time.perf_counter()
        bench = prepare(wanted, model=self._model, images=self._images)
        self._made.append((wanted, bench, time.perf_counter() - started))
        return self._made[-1]


def _rows(
    method: Method, benches: _Benches, precisions: Sequence[str], split: Split, tell: OnMethod
) -> Iterator[dict[str, Any]]:
    for precision in precisions if method.is_free else (None,):
        name = method.name if precision is None else f"{method.name} {precision}"
        tell(name)
        started = time.perf_counter()
        plan = method.make_plan(benches.of(method), precision or "")
        row = judged_plan(benches.of(method), plan, split, is_fitted=method.is_fitted)
        row["seconds"] = time.perf_counter() - started
        yield {
            "name": name,
            "method": method.name,
            "precision": precision,
            "preparation_seconds": benches.seconds(method),
            **row,
        }


def judged_plan(
    bench: Workbench, plan: Plan | Finalist, split: Split, *, is_fitted: bool = False, save: Path | None = None
) -> dict[str, Any]:
    """The figures of one plan.

    Args:
        bench: Model and images.
        plan: Precision of every operation, or a plan with weights of its own.
        split: The image set to judge on.
        is_fitted: Whether weights are fitted to the plan first.
        save: File that the fitted weights are written to; ``load_finalist`` reads it.

    Raises:
        EvoQuantError: What is wrong, and what to do.
    """
    started = time.perf_counter()
    report = None
    if is_fitted and not isinstance(plan, Finalist):
        plan, report = fit_finalist(bench, plan)
        if save is not None:
            save_finalist(plan, save)
    if isinstance(plan, Finalist):
        bench = bench.with_weights(plan.plan, plan.weights)
        plan = plan.plan
    figures = judge(bench, plan, split)
    fit = None if report is None else report.to_dict()
    return {"seconds": time.perf_counter() - started, "fit": fit, **figures}
