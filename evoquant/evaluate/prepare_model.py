"""Making a model easier to quantize without changing what it computes, each change under the guard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evoquant.calibrate import collect
from evoquant.calibrate.cache import write_whole
from evoquant.calibrate.channel_flow import ChannelFlow, trace_channels
from evoquant.calibrate.channel_ranges import ChannelRange, Place, channel_ranges
from evoquant.calibrate.guard import GuardedStep, keep_what_helps
from evoquant.calibrate.rescale import Rescaling, rescale
from evoquant.calibrate.rescale_choice import balanced_similarity, centred_values, combined, equal_ranges, families
from evoquant.config.preparation import PreparationSpec
from evoquant.errors import DataError
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.simulate import SimulatedModel
from evoquant.graph import CapturedModel
from evoquant.space import uniform_plan

FORMAT_VERSION = 1
GUARD_BITS = (6, 4)
"""Bits of weights and activations that the guard judges at: 8 bits hide errors that fewer show."""
STATISTICS_IMAGES = 32
"""Images of the statistics that the guard quantizes with, at most."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparationReport:
    """What was done to a model before any precision was chosen.

    Attributes:
        steps: What the guard decided, in order.
        held_out_images: Images that it judged on.
        difference: Greatest difference of the prepared floating-point model on them, relative to the greatest output.
        seconds: What finding it took; less where it was known from an earlier run.
    """

    steps: tuple[GuardedStep, ...]
    held_out_images: int
    difference: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def improve(
    captured: CapturedModel, batches: Sequence[Tensor], settings: PreparationSpec, *, known: Path | None = None
) -> tuple[CapturedModel, PreparationReport]:
    """Rescale channels wherever that helps.

    Args:
        captured: The floating-point model; not changed.
        batches: Calibration images.
        settings: What to try.
        known: File that remembers what was kept for this model, these images and settings; None remembers nothing.

    Returns:
        A model with the same outputs, up to rounding, and what was kept.

    Raises:
        DataError: If there are too few images to hold some out.
    """
    started = perf_counter()
    images = torch.cat(list(batches))
    if len(images) < settings.guard_share:
        raise DataError(f"Expected at least {settings.guard_share} calibration images, but got {len(images)}.")
    is_held_out = (torch.arange(len(images)) + 1) % settings.guard_share == 0
    held_out = images[is_held_out]
    parts = _rescalings(captured, images[~is_held_out], settings) if settings.rescaling else _Parts.none(captured)
    steps = _remembered(known, parts)
    if steps is None:
        guard = _Guard(captured, parts, images[~is_held_out][:STATISTICS_IMAGES], held_out)
        steps = guard.decide()
        if known is not None:
            write_whole(known, json.dumps([step.to_dict() for step in steps]).encode())
    kept = [parts.by_step[step.step][part] for step in steps for part in step.kept]
    prepared = rescale(captured, parts.flow, combined(kept, parts.flow)) if kept else captured
    before, after = captured(held_out), prepared(held_out)
    difference = float((before - after).abs().max() / before.abs().max())
    return prepared, PreparationReport(steps, len(held_out), difference, perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What each step could do, by step and part."""

    flow: ChannelFlow
    by_step: Mapping[str, Mapping[str, Rescaling]]

    @classmethod
    def none(cls, captured: CapturedModel) -> _Parts:
        return cls(trace_channels(captured), {})


def _rescalings(captured: CapturedModel, images: Tensor, settings: PreparationSpec) -> _Parts:
    flow = trace_channels(captured)
    readers = [*flow.readers, *(reader for pair in flow.similarities for reader in pair)]
    ranges: dict[Place, ChannelRange] = channel_ranges(captured.program, readers, torch.split(images, 8))
    found = families(captured, flow)
    make = {
        kind: {family.name: equal_ranges(captured, flow, family, ranges) for family in found if family.kind == kind}
        for kind in ("norms", "chains")
    }
    make["similarities"] = {pair[0].op: balanced_similarity(flow, pair, ranges) for pair in flow.similarities}
    make["values"] = {family.name: centred_values(flow, family, ranges) for family in found if family.kind == "values"}
    return _Parts(flow, {step: make[step] for step in settings.rescaling})


def _remembered(known: Path | None, parts: _Parts) -> tuple[GuardedStep, ...] | None:
    """The decisions of an earlier run, if they are about the same parts."""
    if known is None or not known.exists():
        return None
    try:
        stored = json.loads(known.read_text())
        steps = tuple(
            GuardedStep(item["step"], tuple(item["tried"]), tuple(item["kept"]), item["before"], item["after"])
            for item in stored
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s: cannot read what was kept (%s). Deciding again.", known, error)
        return None
    same = {step.step: set(step.tried) for step in steps} == {step: set(of) for step, of in parts.by_step.items()}
    return steps if same else None


class _Guard:
    """Judges rescaled models by their divergence on held-out images."""

    def __init__(self, captured: CapturedModel, parts: _Parts, fitted: Tensor, held_out: Tensor) -> None:
        self._captured = captured
        self._parts = parts
        self._fitted = fitted
        self._held_out = held_out
        self._reference = captured(held_out)
        self._kept: list[Rescaling] = []

    def decide(self) -> tuple[GuardedStep, ...]:
        """Try all steps in order."""
        steps = []
        loss = self._loss([]) if self._parts.by_step else 0.0
        for step, choices in self._parts.by_step.items():
            judge = partial(self._with, step)
            decided = keep_what_helps(step, list(choices), judge, before=loss)
            if decided.kept:
                loss = torch.tensor(decided.after).log().item()
            self._kept += [choices[part] for part in decided.kept]
            steps.append(decided)
        return tuple(steps)

    def _with(self, step: str, parts: frozenset[str]) -> float:
        return self._loss([self._parts.by_step[step][part] for part in sorted(parts)])

    def _loss(self, more: list[Rescaling]) -> float:
        """Mean log divergence over the precisions that the guard judges at."""
        rescaling = combined([*self._kept, *more], self._parts.flow)
        model = rescale(self._captured, self._parts.flow, rescaling)
        names = sorted({name for op in model.graph.ops for name in op.inputs})
        statistics = collect(model.program, names, torch.split(self._fitted, 8))
        simulated = SimulatedModel(model, OperandCache(model, statistics))
        losses = []
        for bits in GUARD_BITS:
            simulated.apply(uniform_plan(model.graph, bits, bits))
            losses.append(divergence(simulated(self._held_out), self._reference).mean().clamp_min(1e-12).log())
        return float(torch.stack(losses).mean())
