"""Fitting one plan as a whole: more time than a candidate of a search gets, under the guard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evoquant.calibrate.augment import with_changes
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.guard import LEAST_GAIN
from evoquant.calibrate.importance import position_importance
from evoquant.calibrate.moments import HELD_OUT_EVERY
from evoquant.calibrate.sequential import fit_sequentially
from evoquant.calibrate.tuning import tune
from evoquant.evaluate.finalist import Finalist
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.simulate import Plan, SimulatedModel
from evoquant.evaluate.workbench import Workbench
from evoquant.types import FLOAT_BITS

SHARES_OF_FLOAT = (0.0, 1.0)
"""What a weight, and a block, is fitted to: the output that it alone loses, or also what was lost before it."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What fitting has brought.

    Attributes:
        kept: ``search``: the weights of the search; ``sequential``: fitted one after the other to quantized inputs;
            ``learned``: the rounding of blocks is learned as well; ``tuned``: scales and biases of the best of these
            follow the divergence.
        divergences: Mean divergence on the calibration images that nothing was fitted to and on random changes of
            them, in nats, of what was tried.
        held_out_images: How many those are.
        seconds: What it took.
    """

    kept: str
    divergences: Mapping[str, float]
    held_out_images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fit_finalist(bench: Workbench, plan: Plan) -> tuple[Finalist, FitReport]:
    """Fit the weights of a plan to the calibration images, in the order of computation, and tune them as a whole.

    Each way is tried, and the one is kept with the least divergence on calibration images that nothing was fitted to,
    if it is less than that of the search by ``LEAST_GAIN``: fits that bring nothing there lose elsewhere. As these
    images also choose between regularizations of single weights, they are no test: judge on other images.

    Args:
        bench: Model, images and settings (``compensation``).
        plan: Precision of every operation.

    Returns:
        The plan with its weights (none where those of the search are kept), and what it brought.

    Raises:
        DataError: If there are too few calibration images.
        PrecisionError: If an operation cannot have its precision.
    """
    started = perf_counter()
    settings = bench.experiment.compensation
    batches = list(bench.calibration.batches(bench.experiment.evaluation.batch_size))
    images = torch.cat(batches)
    is_held_out = (torch.arange(len(images)) + 1) % HELD_OUT_EVERY == 0
    held_out = with_changes(images[is_held_out])
    reference = bench.captured(held_out)

    def judged(weights: Mapping[str, QuantizedWeight]) -> float:
        operands = bench.evaluator.operands.with_weights(plan, weights)
        model = SimulatedModel(operands.captured, operands)
        model.apply(plan)
        return float(divergence(model(held_out), reference).mean())

    found: dict[str, Mapping[str, QuantizedWeight]] = {}
    divergences: dict[str, float] = {}

    def consider(name: str, weights: Mapping[str, QuantizedWeight]) -> None:
        loss = judged(weights)
        if loss < divergences.get(name, math.inf):
            found[name], divergences[name] = weights, loss

    consider("search", {})
    operands = bench.evaluator.operands
    importance = position_importance(bench.captured, batches, settings.gradient_share)
    in_order = partial(
        fit_sequentially, bench.captured, plan, batches, operands.quantizer, settings, importance=importance
    )
    for share in SHARES_OF_FLOAT:
        consider("sequential", in_order(share_of_float=share))
        if settings.rounding.iterations:
            consider("learned", in_order(share_of_float=share, rounding=settings.rounding))
    if settings.tuning.steps:
        best = found[min(divergences, key=lambda name: divergences[name])]
        consider("tuned", _tuned(bench, plan, best, images[~is_held_out]))
    kept = worth_keeping(divergences)
    report = FitReport(kept, divergences, int(is_held_out.sum()), perf_counter() - started)
    return Finalist(plan, found[kept]), report


def _tuned(
    bench: Workbench, plan: Plan, weights: Mapping[str, QuantizedWeight], images: Tensor
) -> dict[str, QuantizedWeight]:
    """All weights of the plan, tuned from these; operations that have none here start from those of the search."""
    operands = bench.evaluator.operands.with_weights(plan, weights)
    ops = bench.captured.graph.ops
    start = {
        op.name: operands.quantized_weight(op, plan[op.name])
        for op in ops
        if op.weight_count and plan[op.name].weight_bits != FLOAT_BITS
    }
    quantizers = {
        (op.name, index): operands.quantizer(op, index, plan[op.name]) for op in ops for index in range(len(op.inputs))
    }
    return tune(bench.captured, start, quantizers, images, bench.experiment.compensation.tuning)


def worth_keeping(divergences: Mapping[str, float]) -> str:
    """The way with the least divergence, or ``search`` where that is not less by ``LEAST_GAIN``."""
    best = min(divergences, key=lambda name: divergences[name])
    return best if divergences[best] <= divergences["search"] * math.exp(-LEAST_GAIN) else "search"
