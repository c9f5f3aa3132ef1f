"""Nearest points of the code lattices, in units of the scale: integers, some of them, powers of two, tables.

Each lattice changes a tensor in place, in passes that are as cheap as a copy, because the simulation of a whole model
spends its time here. A tensor that is not finite keeps what is NaN as NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

_MANTISSA_BITS = 23
_EXPONENT_MASK = 0x7F800000
_LINEAR_MIDPOINT = {1: 1.5, 2: ((1.0 + 2.0**0.5) / 2.0) ** 2}
"""The mantissa at which rounding goes up: the middle of two levels (squared for powers of the root of two)."""


class Lattice(Protocol):
    """A set of points; ``nearest_`` replaces each value by the nearest one."""

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each value by the nearest point, in place."""
        ...


@dataclass(frozen=True, slots=True)
class StepLattice:
    """The integers between two bounds, ties to even.

    Attributes:
        lower: Smallest integer, a number or a float tensor that broadcasts (one bound per channel).
        upper: Greatest integer, likewise.
    """

    lower: float | Tensor
    upper: float | Tensor

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each value by the nearest integer inside the bounds, in place."""
        return self.clamp_(values.round_())

    def clamp_(self, values: Tensor) -> Tensor:
        """Move each value inside the bounds, in place."""
        if isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor):
            return values.clamp_(torch.as_tensor(self.lower), torch.as_tensor(self.upper))
        return values.clamp_(self.lower, self.upper)


@dataclass(frozen=True, slots=True)
class LevelLattice:
    """Some of the integers.

    A value goes to the nearest integer, ties to even, and from there to the nearest level, ties downwards: what a
    kernel does that quantizes to bytes first.

    Attributes:
        levels: The integers in ascending order.
    """

    levels: tuple[int, ...]

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each value by the nearest level, in place."""
        first = self.levels[0]
        values.round_().clamp_(first, self.levels[-1])
        # What is NaN has no index; its product below stays NaN.
        index = (values - first).nan_to_num_().to(torch.int32)
        nearest = torch.index_select(_nearest_levels(self.levels), 0, index.reshape(-1))
        return values.mul_(0.0).add_(nearest.view(values.shape))


@dataclass(frozen=True, slots=True)
class OctaveLattice:
    """Zero and the levels ``2**(-j / levels_per_octave)`` for j from 0 to ``magnitudes - 1``, also negative if signed.

    Rounding is to the nearest level by distance, so between two powers of two the decision lies at ``1.5 * 2**k``,
    which gives a smaller square error than rounding the logarithm. Half of the smallest level becomes zero.

    Attributes:
        magnitudes: Number of levels greater than zero.
        levels_per_octave: 1 for powers of two, 2 for powers of the root of two.
        is_signed: Whether levels have a sign.
    """

    magnitudes: int
    levels_per_octave: int
    is_signed: bool

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each float32 value by the nearest level, in place."""
        smallest = 2.0 ** (-(self.magnitudes - 1) / self.levels_per_octave)
        shrink = functional.hardshrink if self.is_signed else _one_sided_shrink
        alive = shrink(values, smallest / 2.0)
        values.abs_()
        values.clamp_(smallest, 1.0)
        if self.levels_per_octave == 2:
            values.square_()
        round_up = round((2.0 - _LINEAR_MIDPOINT[self.levels_per_octave]) * 2**_MANTISSA_BITS)
        values.view(torch.int32).add_(round_up).bitwise_and_(_EXPONENT_MASK)
        if self.levels_per_octave == 2:
            values.sqrt_()
        return values.mul_(alive.sign()).add_(alive.mul_(0.0))  # the sum keeps NaN, which the integers above have lost


@dataclass(frozen=True, slots=True)
class TableLattice:
    """Points in a table.

    Attributes:
        levels: The points in ascending order.
    """

    levels: tuple[float, ...]

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each value by the nearest point, ties downwards, in place; what is NaN stays so."""
        nearest, is_above = torch.full_like(values, self.levels[0]), torch.empty_like(values)
        for low, high in pairwise(self.levels):  # several times faster than a search and a gather
            nearest.add_(torch.gt(values, (low + high) / 2.0, out=is_above), alpha=high - low)
        return values.clamp_(self.levels[0], self.levels[-1]).mul_(0.0).add_(nearest)  # the product keeps NaN


@dataclass(frozen=True, slots=True)
class SignLattice:
    """Minus one and plus one; zero becomes plus one."""

    def nearest_(self, values: Tensor) -> Tensor:
        """Replace each value by its sign, in place."""
        return values.ge_(0.0).mul_(2.0).sub_(1.0)


@lru_cache(maxsize=1024)
def _nearest_levels(levels: tuple[int, ...]) -> Tensor:
    """For each integer from the least to the greatest level the nearest level."""
    points = torch.tensor(levels, dtype=torch.float32)
    integers = torch.arange(levels[0], levels[-1] + 1, dtype=torch.float32)
    return points[torch.bucketize(integers, (points[1:] + points[:-1]) / 2.0)]


def _one_sided_shrink(values: Tensor, threshold: float) -> Tensor:
    """Zero in place of what is not greater than the threshold."""
    return functional.threshold(values, threshold, 0.0)


@lru_cache(maxsize=32)
def octave_levels(magnitudes: int, levels_per_octave: int, is_signed: bool) -> Tensor:
    """All points of an ``OctaveLattice`` in ascending order, float32."""
    exponents = torch.arange(-(magnitudes - 1), 1, dtype=torch.float32)
    positive = torch.exp2(exponents) if levels_per_octave == 1 else torch.exp2(exponents).sqrt()
    negative = -positive.flip(0) if is_signed else positive[:0]
    return torch.cat([negative, torch.zeros(1), positive])
