"""Making a model easier to quantize without changing what it computes, each change under the guard."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evoquant.calibrate import Statistics, collect
from evoquant.calibrate.augment import with_changes
from evoquant.calibrate.cache import write_whole
from evoquant.calibrate.channel_flow import ChannelFlow, trace_channels
from evoquant.calibrate.channel_ranges import channel_ranges
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.guard import GuardedStep, Losses, keep_what_helps
from evoquant.calibrate.importance import Importance, position_importance
from evoquant.calibrate.input_scaling import even_factors, fixed_depthwise_inputs, scale_inputs
from evoquant.calibrate.moments import SplitMoments, collect_moments
from evoquant.calibrate.relative_rows import softmax_products, with_relative_rows
from evoquant.calibrate.rescale import rescale, rescaled_moments
from evoquant.calibrate.rescale_choice import equal_ranges, families
from evoquant.calibrate.rotate import rotate
from evoquant.calibrate.streams import Stream, find_streams
from evoquant.config.preparation import PreparationSpec
from evoquant.config.quantizers import CompensationSpec
from evoquant.errors import DataError
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.operands import OperandCache, weight_part
from evoquant.evaluate.simulate import SimulatedModel
from evoquant.graph import CapturedModel
from evoquant.space import uniform_plan
from evoquant.space.presets import equal_steps_plan
from evoquant.types import LayerQuantConfig, Op

FORMAT_VERSION = 9
GUARD_BITS = ((6, 6), (4, 8), (4, 4))
"""Bits of weights and activations that the guard judges at."""
SHARES = {"norms": (0.5, 0.5), "chains": (1.0, 0.0)}
"""By step, the exponents of the ranges of activations and of columns of weights, see ``equal_ranges``."""
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
    """Rotate and rescale wherever that helps.

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
    judge = _Judge(captured, images[~is_held_out], with_changes(held_out), compensation)
    deciding = _Deciding(judge, _remembered(known))
    prepared = deciding.prepare(captured, images[~is_held_out], settings)
    if known is not None and deciding.is_new:
        write_whole(known, json.dumps([step.to_dict() for step in deciding.steps]).encode())
    before, after = captured(held_out), prepared(held_out)
    difference = float((before - after).abs().max() / before.abs().max())
    report = PreparationReport(tuple(deciding.steps), len(held_out), difference, perf_counter() - started)
    return prepared, report


def _remembered(known: Path | None) -> dict[str, GuardedStep]:
    """The decisions of an earlier run by step."""
    if known is None or not known.exists():
        return {}
    try:
        stored = json.loads(known.read_text())
        steps = (
            GuardedStep(item["step"], tuple(item["tried"]), tuple(item["kept"]), item["before"], item["after"])
            for item in stored
        )
        return {step.step: step for step in steps}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s: cannot read what was kept (%s). Deciding again.", known, error)
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class _Changed:
    """A model and the moments of its inputs."""

    captured: CapturedModel
    moments: Mapping[str, SplitMoments]


Change = Callable[[frozenset[str]], _Changed]
"""Changes some parts of a model."""


class _Deciding:
    """Takes one step after the other, or remembers what was kept of it.

    Args:
        judge: Judges models.
        remembered: Decisions of an earlier run by step; they hold where they are about the same parts.
    """

    def __init__(self, judge: _Judge, remembered: Mapping[str, GuardedStep]) -> None:
        self.steps: list[GuardedStep] = []
        self.is_new = False
        self._judge = judge
        self._remembered = remembered
        self._losses: Losses | None = None

    def prepare(self, captured: CapturedModel, images: Tensor, settings: PreparationSpec) -> CapturedModel:
        """Take all steps.

        Args:
            captured: The model.
            images: What factors are chosen by.
            settings: Which steps.
        """
        now = _Changed(captured, {})
        if settings.rescaling:
            now = _Changed(captured, self._judge.moments)
        if "rotations" in settings.rescaling:
            streams = {stream.name: stream for stream in find_streams(captured)}
            now = self._taken("rotations", list(streams), now, partial(self._rotated, now, streams))
        if "depthwise" in settings.rescaling:
            factors = _input_factors(now.captured, images)
            now = self._taken("depthwise", list(factors), now, partial(_with_scaled_inputs, now, factors))
        steps = [step for step in settings.rescaling if step in SHARES]
        if steps:
            now = self._rescaled(steps, now, images)
        if "attention_rows" in settings.rescaling:
            now = self._taken("attention_rows", softmax_products(now.captured), now, partial(_with_relative_rows, now))
        return now.captured

    def _rotated(self, now: _Changed, streams: Mapping[str, Stream], some: frozenset[str]) -> _Changed:
        chosen = [stream for name, stream in streams.items() if name in some]
        rotated = rotate(now.captured, chosen)
        readers = {reader.op for stream in chosen for reader in stream.readers}
        moved = readers & now.moments.keys()
        moments = self._judge.moments_of(rotated, moved) if moved else {}
        return _Changed(rotated, {**now.moments, **moments})

    def _rescaled(self, steps: Sequence[str], now: _Changed, images: Tensor) -> _Changed:
        flow = trace_channels(now.captured)
        choices = _rescalings(now.captured, flow, images)
        kept: list[Tensor] = []
        model = now
        for step in steps:
            model = self._taken(
                step, list(choices[step]), model, partial(_with_rescaled, now, flow, kept, choices[step])
            )
            kept += [choices[step][part] for part in self.steps[-1].kept]
        return model

    def _taken(self, step: str, parts: list[str], now: _Changed, change: Change) -> _Changed:
        """Decide one step; returns the model with what was kept of it."""
        known = self._remembered.get(step)
        if known is not None and not self.is_new and set(known.tried) == set(parts):
            self.steps.append(known)
            return change(frozenset(known.kept)) if known.kept else now
        self.is_new = True
        before = self._losses or self._judge(now)
        decided, self._losses = keep_what_helps(step, parts, lambda some: self._judge(change(some)), before=before)
        self.steps.append(decided)
        return change(frozenset(decided.kept)) if decided.kept else now


def _input_factors(captured: CapturedModel, images: Tensor) -> dict[str, Tensor]:
    readers = fixed_depthwise_inputs(captured, trace_channels(captured))
    ranges = channel_ranges(captured.program, readers, torch.split(images, 8))
    return {reader.op: even_factors(reader, ranges) for reader in readers}


def _with_scaled_inputs(now: _Changed, factors: Mapping[str, Tensor], some: frozenset[str]) -> _Changed:
    chosen = {name: factor for name, factor in factors.items() if name in some}
    moments = dict(now.moments)
    for name, factor in chosen.items():
        if name in moments:
            by_input = factor[:, None].expand(moments[name].fitted.mean.shape)
            moments[name] = moments[name].rescaled(by_input)
    return _Changed(scale_inputs(now.captured, chosen), moments)


def _with_relative_rows(now: _Changed, some: frozenset[str]) -> _Changed:
    return _Changed(with_relative_rows(now.captured, some), now.moments)


def _rescalings(captured: CapturedModel, flow: ChannelFlow, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """The factors that each step could apply, by step and part."""
    ranges = channel_ranges(captured.program, flow.readers, torch.split(images, 8))
    found = families(flow)
    return {
        kind: {
            family.name: equal_ranges(
                captured, flow, family, ranges, activation_share=activation_share, weight_share=weight_share
            )
            for family in found
            if family.kind == kind
        }
        for kind, (activation_share, weight_share) in SHARES.items()
    }


def _with_rescaled(
    base: _Changed,
    flow: ChannelFlow,
    kept: list[Tensor],
    choices: Mapping[str, Tensor],
    some: frozenset[str],
) -> _Changed:
    parts = [*kept, *(choices[part] for part in sorted(some))]
    factors = torch.stack(parts).prod(0)
    moments = rescaled_moments(base.captured, flow, factors, base.moments)
    return _Changed(rescale(base.captured, flow, factors), moments)


class _Judge:
    """Judges changed models by their divergence on held-out images and random changes of them."""

    def __init__(
        self, captured: CapturedModel, fitted: Tensor, held_out: Tensor, compensation: CompensationSpec
    ) -> None:
        self._captured = captured
        self._fitted = fitted
        self._held_out = held_out
        middle = compensation.dampings[len(compensation.dampings) // 2]
        quick = {"dampings": (middle,), "refinement_sweeps": 0, "scale_fractions": ()}
        self._compensation = compensation.model_copy(update=quick)
        self._rounded: dict[_RoundedKey, QuantizedWeight] = {}

    @cached_property
    def moments(self) -> Mapping[str, SplitMoments]:
        """Of the inputs of the unchanged model."""
        return self.moments_of(self._captured, None) if self._compensation.is_active else {}

    def moments_of(self, captured: CapturedModel, ops: Collection[str] | None) -> Mapping[str, SplitMoments]:
        """Of the inputs of some operations of a changed model, with the importance that positions have in the model."""
        batches = torch.split(self._fitted, 8)
        return collect_moments(captured.program, captured.graph, batches, ops=ops, importance=self._importance)

    @cached_property
    def _importance(self) -> Importance:
        batches = torch.split(self._fitted, 8)
        return position_importance(self._captured, batches, self._compensation.gradient_share)

    @cached_property
    def _reference(self) -> Tensor:
        return self._captured(self._held_out)

    def __call__(self, changed: _Changed) -> Losses:
        """Log divergences at the precisions that the guard judges at."""
        model = changed.captured
        names = sorted({name for op in model.graph.ops for name in op.inputs})
        statistics = collect(model.program, names, torch.split(self._fitted[:STATISTICS_IMAGES], 8))
        operands = _KnownOperands(model, statistics, changed.moments, self._compensation, self._rounded)
        simulated = SimulatedModel(model, operands)
        losses = []
        for bits in GUARD_BITS:
            # Uneven levels take long to find, and hide how uneven channels are.
            simulated.apply(equal_steps_plan(model.graph, uniform_plan(model.graph, *bits)))
            losses.append(float(divergence(simulated(self._held_out), self._reference).mean().clamp_min(1e-12).log()))
        return tuple(losses)


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
