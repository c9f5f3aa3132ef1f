"""The known methods side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from evoquant.api.evolution import as_experiment
from evoquant.config import Experiment
from evoquant.data import ImageBatchSource
from evoquant.evaluate import prepare
from evoquant.run.judge import judge
from evoquant.run.plans import read_plan
from evoquant.space import PRESET_NAMES


def compare_quantization_methods(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    plans: Sequence[str] = PRESET_NAMES,
    split: Literal["selection", "test"] = "test",
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
) -> list[dict[str, Any]]:
    """Judge several plans on the same images.

    Args:
        experiment: Model, images and device; see ``run_evolution``.
        plans: Presets, plan files, or points of runs (``RUN_DIR#knee``).
        split: The image set to judge on.
        model: Used instead of the model that the experiment names.
        images: Used instead of its image sets.

    Returns:
        For each plan its ``name``, ``seconds``, and the figures of ``evoquant evaluate``.

    Raises:
        EvoQuantError: What is wrong, and what to do.
    """
    bench = prepare(as_experiment(experiment), model=model, images=images)
    methods = []
    for name in plans:
        started = time.perf_counter()
        judged = judge(bench, read_plan(name, bench.captured.graph, bench.classes), split)
        methods.append({"name": name, "seconds": time.perf_counter() - started, **judged})
    return methods
