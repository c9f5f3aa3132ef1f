"""What every choice of every group does to the output, from a bounded number of probes of one group at a time.

A choice of a group acts through its weights and through its activations. Each side is probed with the other one, and
all other groups, in floating point, and a choice is taken to be the sum of its two sides: to second order the
divergence of a network is additive in independent perturbations. Formats of one side that are not probed are scaled
from the nearest one that is, by the ratio of their square errors at the place of quantization. A group with a single
choice is not probed: what it adds, it adds to every plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from threading import Event
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from evoquant.errors import RunError
from evoquant.evaluate.accuracy import AccuracyEvaluator
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.operands import OperandCache, activation_part, weight_part
from evoquant.evaluate.simulate import Plan, SimulatedModel
from evoquant.space import SearchSpace, uniform_plan
from evoquant.types import FLOAT_BITS, CalibrationMethod, Group, LayerQuantConfig, ModelGraph, OpKind

USELESS_KL = 20.0
"""Stands for the divergence of an output that is not finite, in nats."""

Part: TypeAlias = tuple[tuple[str, LayerQuantConfig], ...]
"""One side of a choice: the precision of each operation of the group with the other side in floating point."""


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """What each choice of each group adds to the divergence.

    Attributes:
        groups: Names of the groups, in the order of the space.
        errors: For each group the mean KL divergence, in nats, that each of its choices adds, in the order of
            ``SearchSpace.choice_plans``; 0 for a choice without an alternative.
        probes: Number of probes.
        images: Images of each probe.
        passes: What they cost, in forward passes of one image: a pass from a cut counts by its share of the MACs, the
            pass that they all go on from counts once.
    """

    groups: tuple[str, ...]
    errors: tuple[tuple[float, ...], ...]
    probes: int
    images: int
    passes: float

    @property
    def full_passes(self) -> int:
        """Forward passes of one image that the same probes would take from the input."""
        return self.probes * self.images

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "groups": list(self.groups),
            "errors": [list(values) for values in self.errors],
            "probes": self.probes,
            "images": self.images,
            "passes": self.passes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        errors = tuple(tuple(values) for values in data["errors"])
        return cls(tuple(data["groups"]), errors, data["probes"], data["images"], data["passes"])


def probe_choices(
    evaluator: AccuracyEvaluator,
    space: SearchSpace,
    *,
    images: int = 32,
    formats: int | None = 2,
    split: str = "selection",
    workers: int = 1,
    stop: Event | None = None,
) -> ProbeTable:
    """Probe the choices of every group.

    Each batch goes through the floating-point model once; at every group the pass is finished with each probe, so a
    probe costs only what lies behind its group and equals the probe from the input to the last bit.

    Args:
        evaluator: Judges plans.
        space: The choices.
        images: How many images to probe with, from the first one on.
        formats: Number formats (bits and scheme) of each side of a group that are probed, the coarsest first and the
            others evenly spaced; None probes all.
        split: Their image set.
        workers: Threads that share the groups; the answer does not depend on it.
        stop: When set, give up.

    Raises:
        RunError: If ``stop`` is set before the end.
    """
    labelled = evaluator.images(split)
    sides = [_sides(space, position, formats) for position in range(len(space.groups))]
    count = min(images, len(labelled.labels))

    def probe(positions: Sequence[int]) -> int:
        model = evaluator.copy_of_model()
        own = [sides[position] for position in positions]
        probes = _Probe(space.graph, model, [side for pair in own for side in pair])
        done = 0
        for batch in labelled.batches:
            if done < count:
                part = batch[: count - done]
                reference = labelled.reference[done : done + len(part)]
                probes.run([space.groups[position] for position in positions], own, part, reference, stop)
                done += len(part)
        for weights in (weights for weights, _ in own if weights.probed):
            weights.noise = [_weight_noise(model.operands, part, space.graph) for part in weights.parts]
        return probes.macs

    shares = [range(first, len(sides), workers) for first in range(min(workers, len(sides)))]
    with ThreadPoolExecutor(len(shares), thread_name_prefix="probe") as pool:
        macs = sum(pool.map(probe, shares))
    errors = [(weights.errors(count) + activations.errors(count)).tolist() for weights, activations in sides]
    return ProbeTable(
        groups=tuple(group.name for group in space.groups),
        errors=tuple(tuple(values) for values in errors),
        probes=sum(len(side.probed) for pair in sides for side in pair),
        images=count,
        passes=count + macs / max(sum(op.macs for op in space.graph.ops), 1),
    )


class _Side:
    """The weights, or the activations, of all choices of one group.

    Attributes:
        parts: What is distinct on this side.
        of_choice: For each choice the index of its part.
        probed: Sum over images of the divergence, by the index of a probed part.
        noise: Square error of each part at the place of quantization.
    """

    def __init__(self, choices: Sequence[Part], formats: int | None) -> None:
        indices = {part: index for index, part in enumerate(dict.fromkeys(choices))}
        self.parts = list(indices)
        self.of_choice = [indices[part] for part in choices]
        first: dict[tuple[tuple[object, ...], ...], int] = {}
        for index, part in enumerate(self.parts):
            if not all(config.is_float for _, config in part):
                first.setdefault(tuple(_format(config) for _, config in part), index)
        candidates = list(first.values()) if len(choices) > 1 else []
        kept = len(candidates) if formats is None else min(formats, len(candidates))
        chosen = np.linspace(0, len(candidates) - 1, kept).round().astype(int).tolist()
        self.probed = {candidates[index]: 0.0 for index in chosen}
        self.noise = [0.0] * len(self.parts)

    def errors(self, images: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Mean divergence that each choice adds on this side."""
        known = {index: total / images for index, total in self.probed.items()}
        values = [known[index] if index in known else self._scaled(index, known) for index in range(len(self.parts))]
        return np.array([values[index] for index in self.of_choice], dtype=np.float64)

    def _scaled(self, index: int, known: Mapping[int, float]) -> float:
        noise = self.noise[index]
        usable = [probed for probed in known if self.noise[probed] > 0.0]
        if noise == 0.0 or not usable:
            return 0.0
        nearest = min(usable, key=lambda probed: (abs(np.log(self.noise[probed] / noise)), probed))
        return float(min(known[nearest] * noise / self.noise[nearest], USELESS_KL))


def _sides(space: SearchSpace, position: int, formats: int | None) -> tuple[_Side, _Side]:
    """Weights and activations of a group; the operands of a matmul are activations, both of them."""
    graph = space.graph
    plans = space.choice_plans(position)
    weights = [
        tuple(
            (name, replace(weight_part(config), activation_bits=FLOAT_BITS)) for name, config in _weighted(plan, graph)
        )
        for plan in plans
    ]
    activations = [
        tuple(
            (name, config)
            if graph.op[name].kind is OpKind.MATMUL
            else (name, replace(activation_part(0, config), weight_bits=FLOAT_BITS))
            for name, config in plan.items()
        )
        for plan in plans
    ]
    return _Side(weights, formats), _Side(activations, formats)


def _weighted(plan: Plan, graph: ModelGraph) -> list[tuple[str, LayerQuantConfig]]:
    return [(name, config) for name, config in plan.items() if graph.op[name].weight_count]


def _format(config: LayerQuantConfig) -> tuple[object, ...]:
    return config.weight_bits, config.weight_scheme, config.activation_bits, config.activation_scheme


class _Probe:
    """Runs the probes of one batch after the other."""

    def __init__(self, graph: ModelGraph, model: SimulatedModel, sides: Sequence[_Side]) -> None:
        self._graph, self._model = graph, model
        self._float = uniform_plan(graph, FLOAT_BITS, FLOAT_BITS)
        self._observers: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
        for side in sides[1::2]:
            if side.probed:
                self._observe_side(side)
        macs = [op.macs for op in graph.ops]
        behind = list(accumulate(reversed(macs)))[::-1]
        self._shares = dict(zip((op.name for op in graph.ops), behind, strict=True))
        self.macs = 0

    def run(
        self,
        groups: Sequence[Group],
        sides: Sequence[tuple[_Side, _Side]],
        images: Tensor,
        reference: Tensor,
        stop: Event | None,
    ) -> None:
        """Probe all groups on one batch."""
        self._model.apply(self._float)
        sweep = self._model.sweep(images, observe=self._passed)
        cuts = [self._model.cut(group.ops) for group in groups]
        for index in sorted(range(len(groups)), key=lambda index: (cuts[index], index)):
            sweep.advance(cuts[index])
            for side in sides[index]:
                for part in side.probed:
                    if stop is not None and stop.is_set():
                        raise RunError("The probes were stopped.")
                    self._model.apply({**self._float, **dict(side.parts[part])})
                    side.probed[part] += _total(sweep.finish(), reference)
                    self.macs += len(images) * max(self._shares[name] for name in groups[index].ops)
            self._model.apply(self._float)
        sweep.advance(max(self._model.cut([name]) for name in self._graph.op) + 1)

    def _observe_side(self, side: _Side) -> None:
        """Have the square error of every part of a side added up where its operands are quantized."""
        names = [name for name, _ in side.parts[0]]
        seen: set[fx.Node] = set()
        for place, name in enumerate(names):
            op = self._graph.op[name]
            for index, node in enumerate(self._model.places_of(name)):
                if node not in seen:
                    seen.add(node)
                    configs = [_by_square_error(part[place][1]) for part in side.parts]
                    quantizers = [self._model.operands.quantizer(op, index, config) for config in configs]
                    self._observers.setdefault(node, []).append(partial(_add_noise, side.noise, quantizers))

    def _passed(self, node: fx.Node, operand: Tensor) -> None:
        for observer in self._observers.get(node, ()):
            observer(operand)


def _by_square_error(config: LayerQuantConfig) -> LayerQuantConfig:
    """A range set by its effect on the output clips more than one set by square error, and does less harm for it.

    Its square error would say the opposite, so the other one's stands for it.
    """
    if config.calibration_method is CalibrationMethod.FISHER:
        return replace(config, calibration_method=CalibrationMethod.MSE)
    return config


def _add_noise(noise: list[float], quantizers: Sequence[Callable[[Tensor], Tensor] | None], operand: Tensor) -> None:
    for index, quantizer in enumerate(quantizers):
        if quantizer is not None:
            noise[index] += float((quantizer(operand) - operand).square().sum(dtype=torch.float64))


def _weight_noise(operands: OperandCache, part: Part, graph: ModelGraph) -> float:
    total = 0.0
    for name, config in part:
        original = operands.captured.weight(name)
        assert original is not None, "only operations with a weight have this side"
        total += float((operands.weight(graph.op[name], config) - original).square().sum(dtype=torch.float64))
    return total


def _total(logits: Tensor, reference: Tensor) -> float:
    values = divergence(logits, reference).nan_to_num(nan=USELESS_KL, posinf=USELESS_KL)
    return float(values.clamp(max=USELESS_KL).sum())
