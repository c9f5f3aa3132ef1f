"""The guard: a step stays only for those parts where it brings the quantized model nearer to the original.

It judges at several precisions: what makes activations easier to quantize may make weights harder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

Losses = tuple[float, ...]
"""Log divergences on images that no step has seen, one for each precision. Less is better."""

Judge = Callable[[frozenset[str]], Losses]
"""The losses with a set of parts changed."""

LEAST_GAIN = 0.01
"""A step has to lessen the mean log divergence by so much: one hundredth is one percent."""

DEEPEST_SPLIT = 1
"""How often the parts of a step that does not help as a whole are halved and tried again."""


@dataclass(frozen=True, slots=True)
class GuardedStep:
    """What the guard decided about one step.

    Attributes:
        step: Name of the step.
        tried: Parts that it could change.
        kept: Parts that it changes now.
        before: Geometric mean of the divergences on held-out images before the step, in nats.
        after: The same with what was kept.
    """

    step: str
    tried: tuple[str, ...]
    kept: tuple[str, ...]
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def keep_what_helps(step: str, parts: Sequence[str], judge: Judge, *, before: Losses) -> tuple[GuardedStep, Losses]:
    """Decide for which parts a step stays.

    All parts are tried together. If that does not help they are halved, and each half is tried beside what is kept.

    Args:
        step: Name of the step.
        parts: Parts that the step can change, in the order of computation.
        judge: Losses with some of the parts changed.
        before: The same with none of them changed.

    Returns:
        What was decided, and the losses with what was kept.
    """
    kept, losses = _keep(list(parts), frozenset(), judge, before, DEEPEST_SPLIT)
    in_order = tuple(part for part in parts if part in kept)
    return GuardedStep(step, tuple(parts), in_order, math.exp(fmean(before)), math.exp(fmean(losses))), losses


def _helps(before: Losses, after: Losses) -> bool:
    """Whether the mean falls by enough, and no precision loses more than the mean gains."""
    gain = fmean(before) - fmean(after)
    harm = max(new - old for old, new in zip(before, after, strict=True))
    return gain >= max(LEAST_GAIN, harm)


def _keep(
    parts: list[str], kept: frozenset[str], judge: Judge, before: Losses, splits: int
) -> tuple[frozenset[str], Losses]:
    if not parts:
        return kept, before
    with_all = kept | frozenset(parts)
    after = judge(with_all)
    if _helps(before, after):
        return with_all, after
    if splits == 0 or len(parts) == 1:
        return kept, before
    middle = len(parts) // 2
    for half in (parts[:middle], parts[middle:]):
        kept, before = _keep(half, kept, judge, before, splits - 1)
    return kept, before
