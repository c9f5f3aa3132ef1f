"""What every choice of every group does to the output, measured with one side of one group quantized at a time.

A choice of a group acts through its weights and through its activations. Each side is probed with the other one, and
all other groups, in floating point, and a choice is taken to be the sum of its two sides: to second order the
divergence of a network is additive in independent perturbations. A group with a single choice is not probed: what it
adds, it adds to every plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from threading import Event
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evoquant.errors import RunError
from evoquant.evaluate.accuracy import AccuracyEvaluator
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.sides import Side, sides_of
from evoquant.evaluate.simulate import SimulatedModel
from evoquant.space import SearchSpace, uniform_plan
from evoquant.types import FLOAT_BITS, ModelGraph

USELESS_KL = 20.0
"""Stands for the divergence of an output that is not finite, in nats."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """What each choice of each group adds to the divergence.

    Attributes:
        groups: Names of the groups, in the order of the space.
        errors: For each group the mean KL divergence, in nats, that each of its choices adds, in the order of
            ``SearchSpace.choice_plans``; 0 for a choice without an alternative.
        probes: Number of sides of choices that were judged.
        images: Images of each.
        passes: What they cost, in forward passes of one image, by multiplications and additions.
    """

    groups: tuple[str, ...]
    errors: tuple[tuple[float, ...], ...]
    probes: int
    images: int
    passes: float

    @property
    def full_passes(self) -> int:
        """Forward passes of one image that as many probes would take from the input."""
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
        split: Their image set.
        workers: Threads that share the groups; the answer does not depend on it.
        stop: When set, give up.

    Raises:
        RunError: If ``stop`` is set before the end.
    """
    labelled = evaluator.images(split)
    count = min(images, len(labelled.labels))
    probes = [_GroupProbe.of(space, position) for position in range(len(space.groups))]

    def probe(share: Sequence[_GroupProbe]) -> int:
        model, done, macs = evaluator.copy_of_model(), 0, 0
        for batch in labelled.batches:
            if done < count:
                part = batch[: count - done]
                macs += _probe_batch(space.graph, model, share, part, labelled.reference[done : done + len(part)], stop)
                done += len(part)
        return macs

    chosen = [entry for entry in probes if entry.has_choice]
    shares = [chosen[first::workers] for first in range(workers)]
    with ThreadPoolExecutor(workers, thread_name_prefix="probe") as pool:
        macs = sum(pool.map(probe, filter(None, shares)))
    return ProbeTable(
        groups=tuple(group.name for group in space.groups),
        errors=tuple(tuple((entry.errors / count).tolist()) for entry in probes),
        probes=sum(len(total) for entry in chosen for total in entry.totals),
        images=count,
        passes=count + macs / max(space.graph.macs, 1),
    )


@dataclass(frozen=True, slots=True)
class _GroupProbe:
    """The sides of one group, and for each part of them the sum over images of its divergence."""

    ops: tuple[str, ...]
    sides: tuple[Side, Side]
    totals: tuple[Floats, Floats]

    @classmethod
    def of(cls, space: SearchSpace, position: int) -> Self:
        weights, activations = sides_of(space.graph, space.choice_plans(position))
        totals = np.zeros(len(weights.parts)), np.zeros(len(activations.parts))
        return cls(space.groups[position].ops, (weights, activations), totals)

    @property
    def has_choice(self) -> bool:
        return len(self.sides[0].of_choice) > 1

    @property
    def errors(self) -> Floats:
        """The sum of both sides for each choice."""
        weights, activations = self.sides
        return self.totals[0][list(weights.of_choice)] + self.totals[1][list(activations.of_choice)]


def _probe_batch(
    graph: ModelGraph,
    model: SimulatedModel,
    probes: Sequence[_GroupProbe],
    images: Tensor,
    reference: Tensor,
    stop: Event | None,
) -> int:
    """Probe these groups on one batch; the multiplications and additions of the passes from the cuts."""
    in_float = uniform_plan(graph, FLOAT_BITS, FLOAT_BITS)
    macs = [op.macs for op in graph.ops]
    behind = dict(zip(graph.op, list(accumulate(reversed(macs)))[::-1], strict=True))
    model.apply(in_float)
    sweep, total = model.sweep(images), 0
    for entry in sorted(probes, key=lambda entry: model.cut(entry.ops)):
        sweep.advance(model.cut(entry.ops))
        for side, totals in zip(entry.sides, entry.totals, strict=True):
            for index, part in enumerate(side.parts):
                if stop is not None and stop.is_set():
                    raise RunError("The probes were stopped.")
                model.apply({**in_float, **dict(part)})
                totals[index] += _total(sweep.finish(), reference)
                total += len(images) * max(behind[name] for name in entry.ops)
        model.apply(in_float)
    return total


def _total(logits: Tensor, reference: Tensor) -> float:
    values = divergence(logits, reference).nan_to_num(nan=USELESS_KL, posinf=USELESS_KL)
    return float(values.clamp(max=USELESS_KL).sum())
