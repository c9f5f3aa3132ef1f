"""Making a model easier to quantize without changing what it computes, each change under the guard."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evoquant.calibrate import Statistics, collect
from evoquant.calibrate.cache import write_whole
from evoquant.calibrate.channel_flow import ChannelFlow, trace_channels
from evoquant.calibrate.channel_ranges import ChannelRange, Place, channel_ranges
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.guard import GuardedStep, keep_what_helps
from evoquant.calibrate.moments import SplitMoments, collect_moments
from evoquant.calibrate.rescale import Rescaling, rescale, rescaled_moments
from evoquant.calibrate.rescale_choice import balanced_similarity, centred_values, combined, equal_ranges, families
from evoquant.config.preparation import PreparationSpec
from evoquant.config.quantizers import CompensationSpec
from evoquant.errors import DataError
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.operands import OperandCache, weight_part
from evoquant.evaluate.simulate import SimulatedModel
from evoquant.graph import CapturedModel
from evoquant.space import uniform_plan
from evoquant.types import LayerQuantConfig, Op

FORMAT_VERSION = 2
GUARD_BITS = ((6, 6), (4, 8), (4, 4))
"""Bits of weights and activations that the guard judges at: what makes activations easier may make weights harder."""
STATISTICS_IMAGES = 16
"""Images of the activations' statistics that the guard quantizes with, at most."""
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
    captured: CapturedModel,
    batches: Sequence[Tensor],
    settings: PreparationSpec,
    compensation: CompensationSpec,
    *,
    known: Path | None = None,
) -> tuple[CapturedModel, PreparationReport]:
    """Rescale channels wherever that helps.

    Args:
        captured: The floating-point model; not changed.
        batches: Calibration images.
        settings: What to try.
        compensation: How weights will be rounded, which is how the guard rounds them, less what takes long.
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
        guard = _Guard(captured, parts, images[~is_held_out], held_out, compensation)
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

    def __init__(
        self,
        captured: CapturedModel,
        parts: _Parts,
        fitted: Tensor,
        held_out: Tensor,
        compensation: CompensationSpec,
    ) -> None:
        self._captured = captured
        self._parts = parts
        self._fitted = fitted[:STATISTICS_IMAGES]
        self._held_out = held_out
        self._reference = captured(held_out)
        self._kept: list[Rescaling] = []
        middle = compensation.dampings[len(compensation.dampings) // 2]
        self._compensation = compensation.model_copy(update={"dampings": (middle,), "refinement_sweeps": 0})
        self._moments: Mapping[str, SplitMoments] = {}
        if compensation.is_active and parts.by_step:
            self._moments = collect_moments(captured.program, captured.graph, torch.split(fitted, 8))
        self._rounded: dict[_RoundedKey, QuantizedWeight] = {}

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
        moments = rescaled_moments(self._captured, self._parts.flow, rescaling, self._moments)
        operands = _KnownOperands(model, statistics, moments, self._compensation, self._rounded)
        simulated = SimulatedModel(model, operands)
        losses = []
        for bits in GUARD_BITS:
            simulated.apply(uniform_plan(model.graph, *bits))
            losses.append(divergence(simulated(self._held_out), self._reference).mean().clamp_min(1e-12).log())
        return float(torch.stack(losses).mean())


_RoundedKey = tuple[str, LayerQuantConfig, bytes]


class _KnownOperands(OperandCache):
    """Operands of one of many models that are alike: weights that are rounded once are not rounded again.

    Args:
        captured: The model.
        statistics: Of its operands.
        moments: Of its inputs.
        compensation: How weights are rounded.
        rounded: Those known from other models, each with the change of its bias; added to.
    """

    def __init__(
        self,
        captured: CapturedModel,
        statistics: Statistics,
        moments: Mapping[str, SplitMoments],
        compensation: CompensationSpec,
        rounded: dict[_RoundedKey, QuantizedWeight],
    ) -> None:
        super().__init__(captured, statistics, moments=moments, compensation=compensation)
        self._rounded = rounded
        self._digests = {op.name: _digest(captured, op, moments.get(op.name)) for op in captured.graph.ops}

    def _quantized(self, op: Op, config: LayerQuantConfig, bias: Tensor | None) -> QuantizedWeight:
        key = (op.name, weight_part(config), self._digests[op.name])
        if key not in self._rounded:
            self._rounded[key] = super()._quantized(op, config, None)
        found = self._rounded[key]
        return found if bias is None or found.bias is None else replace(found, bias=bias + found.bias)


def _digest(captured: CapturedModel, op: Op, moments: SplitMoments | None) -> bytes:
    """What the rounding of a weight depends on: the weight and the spread of its inputs."""
    weight = captured.weight(op.name)
    if weight is None:
        return b""
    digest = hashlib.sha256(weight.contiguous().numpy().tobytes())
    if moments is not None:
        digest.update(moments.fitted.mean.numpy().tobytes())
        digest.update(moments.fitted.second.diagonal(dim1=1, dim2=2).contiguous().numpy().tobytes())
    return digest.digest()
