"""Fitting the weights of one plan as a whole: more time than a candidate of a search gets, under the guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.moments import HELD_OUT_EVERY
from evoquant.calibrate.sequential import fit_sequentially
from evoquant.evaluate.finalist import Finalist
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.simulate import Plan, SimulatedModel
from evoquant.evaluate.workbench import Workbench

SHARES_OF_FLOAT = (0.0, 1.0)
"""What a weight is fitted to: the output that the operation alone loses, or also what was lost before it."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What fitting has brought.

    Attributes:
        kept: ``search``: the weights of the search; ``sequential``: fitted one after the other to quantized inputs;
            ``learned``: the rounding of blocks is learned as well.
        divergences: Mean divergence on the calibration images that nothing was fitted to, in nats, of what was tried.
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
    """Fit the weights of a plan to the calibration images, in the order of computation.

    Each way is tried, and the one is kept with the least divergence on calibration images that nothing was fitted to.
    As these also choose between regularizations of single weights, they are no test: judge on other images.

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
    held_out = images[(torch.arange(len(images)) + 1) % HELD_OUT_EVERY == 0]
    reference = bench.captured(held_out)

    def judged(weights: Mapping[str, QuantizedWeight]) -> float:
        return _divergence(bench, plan, weights, held_out, reference)

    found: dict[str, Mapping[str, QuantizedWeight]] = {"search": {}}
    divergences = {"search": judged({})}
    quantizer = bench.evaluator.operands.quantizer
    best_share = SHARES_OF_FLOAT[0]
    for share in SHARES_OF_FLOAT:
        weights = fit_sequentially(bench.captured, plan, batches, quantizer, settings, share_of_float=share)
        loss = judged(weights)
        if loss < divergences.get("sequential", float("inf")):
            found["sequential"], divergences["sequential"], best_share = weights, loss, share
    if settings.rounding.iterations:
        found["learned"] = fit_sequentially(
            bench.captured,
            plan,
            batches,
            quantizer,
            settings,
            share_of_float=best_share,
            rounding=settings.rounding,
        )
        divergences["learned"] = judged(found["learned"])
    kept = min(divergences, key=lambda name: divergences[name])
    report = FitReport(kept, divergences, len(held_out), perf_counter() - started)
    return Finalist(plan, found[kept]), report


def _divergence(
    bench: Workbench, plan: Plan, weights: Mapping[str, QuantizedWeight], images: Tensor, reference: Tensor
) -> float:
    operands = bench.evaluator.operands.with_weights(plan, weights)
    model = SimulatedModel(operands.captured, operands)
    model.apply(plan)
    return float(divergence(model(images), reference).mean())
