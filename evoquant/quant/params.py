"""The value that says how a tensor is quantized: scheme, bits, scales, zero points and their layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from evoquant.errors import PrecisionError
from evoquant.quant.lattice import (
    Lattice,
    LevelLattice,
    OctaveLattice,
    SignLattice,
    StepLattice,
    TableLattice,
    octave_levels,
)
from evoquant.types import QuantizationScheme
from evoquant.types.precision import MAX_LOG2_BITS, NORMAL_LEVELS

MOST_STEPS = 255
"""Between the least and the greatest level of ``LLOYD``: kernels multiply bytes."""

SMALLEST_SCALE = 2.0**-100
"""Scales are never smaller, so that their inverse is finite; a tensor of zeros gets this one."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """How real values map to integer codes and back.

    Step schemes (uniform, power-of-two scale, ternary): ``x ~ scale * (code - zero_point)``. The others read a
    codebook: ``x ~ scale * codebook[code - q_min]``. Codes grow with the value in each scheme.

    Attributes:
        scheme: ``UNIFORM``, ``POWER_OF_TWO``, ``LOG2``, ``TERNARY``, ``BINARY``, ``LLOYD`` or ``NORMAL``.
        bits: Bits of a code, sign and zero included.
        scale: Float32, positive: shape () for one scale, (channels,) with ``axis``, (rows, groups) with ``group_size``.
        zero_point: Int32 of the same shape, inside [q_min, q_max]; zeros where the scheme has none.
        q_min: Smallest code.
        q_max: Greatest code.
        axis: The axis that has one scale per channel; None for one scale, or for groups.
        group_size: Number of consecutive values of a flattened row (axis 0 is the row) that share a scale.
        levels_per_octave: For ``LOG2``: 1 for powers of two, 2 for powers of the root of two.
        levels: For ``LLOYD``: the values of the codes in units of the scale, ascending, zero among them, all within
            255 steps.
    """

    scheme: QuantizationScheme
    bits: int
    scale: Tensor
    zero_point: Tensor
    q_min: int
    q_max: int
    axis: int | None = None
    group_size: int | None = None
    levels_per_octave: int = 1
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shapes = (tuple(self.scale.shape), tuple(self.zero_point.shape))
        dimensions = 2 if self.group_size is not None else 1 if self.axis is not None else 0
        if shapes[0] != shapes[1] or self.scale.ndim != dimensions:
            raise PrecisionError(
                f"scale and zero_point must both have {dimensions} dimensions for axis {self.axis} and group_size "
                f"{self.group_size}, but got shapes {shapes[0]} and {shapes[1]}."
            )
        if not bool(torch.isfinite(self.scale).all()) or bool((self.scale <= 0).any()):
            raise PrecisionError(
                f"Scales must be positive and finite, but got {self.scale.min()} to {self.scale.max()}."
            )
        if bool((self.zero_point < self.q_min).any()) or bool((self.zero_point > self.q_max).any()):
            raise PrecisionError(
                f"Zero points must lie in [{self.q_min}, {self.q_max}], but got {int(self.zero_point.min())} "
                f"to {int(self.zero_point.max())}."
            )
        if self.scheme is QuantizationScheme.LOG2 and (
            self.bits > MAX_LOG2_BITS or self.levels_per_octave not in (1, 2)
        ):
            raise PrecisionError(
                f"log2 codes have at most {MAX_LOG2_BITS} bits and 1 or 2 levels per octave, but got {self.bits} bits "
                f"and {self.levels_per_octave} levels."
            )
        if self.scheme is QuantizationScheme.LLOYD:
            self._check_levels(dimensions)

    def _check_levels(self, dimensions: int) -> None:
        levels = self.levels
        is_ascending = all(low < high for low, high in pairwise(levels))
        if dimensions or len(levels) != self.code_count or 0 not in levels or not is_ascending:
            raise PrecisionError(
                f"lloyd codes have one scale and {self.code_count} ascending levels with zero, but got {dimensions} "
                f"dimensions and {levels}."
            )
        if levels[-1] - levels[0] > MOST_STEPS:
            raise PrecisionError(f"lloyd levels lie within {MOST_STEPS} steps, but got {levels[0]} to {levels[-1]}.")

    @property
    def codebook(self) -> Tensor | None:
        """Value of each code from q_min to q_max in units of the scale; None for uniform codes. Not to be modified."""
        if self.scheme is QuantizationScheme.LLOYD:
            return torch.tensor(self.levels, dtype=torch.float32)
        return _codebook(self.scheme, self.q_min, self.q_max, self.levels_per_octave)

    @property
    def code_count(self) -> int:
        """Number of distinct codes."""
        return self.q_max - self.q_min + 1

    @property
    def least_step(self) -> float:
        """The least distance of two points, in units of the scale."""
        points = self.codebook
        return 1.0 if points is None else float(points.diff().min())

    @property
    def is_symmetric(self) -> bool:
        """Whether no zero point differs from zero."""
        return not bool(self.zero_point.any())


@lru_cache(maxsize=32)
def _codebook(scheme: QuantizationScheme, q_min: int, q_max: int, levels_per_octave: int) -> Tensor | None:
    if scheme is QuantizationScheme.LOG2:
        return octave_levels(q_max, levels_per_octave, q_min < 0)
    if scheme is QuantizationScheme.TERNARY:
        return torch.tensor([-1.0, 0.0, 1.0])
    if scheme is QuantizationScheme.BINARY:
        return torch.tensor([-1.0, 1.0])
    if scheme is QuantizationScheme.NORMAL:
        return torch.tensor(NORMAL_LEVELS, dtype=torch.float32)
    return None


def code_range(scheme: QuantizationScheme, bits: int, *, is_symmetric: bool, is_signed: bool) -> tuple[int, int]:
    """The smallest and the greatest code.

    Args:
        scheme: How values map to codes.
        bits: Bits of a code.
        is_symmetric: Whether there is no zero point: the range is then narrow, as many codes below zero as above.
        is_signed: Whether codes are two's complement (weights) or start at zero (activations).
    """
    if scheme is QuantizationScheme.BINARY:
        return 0, 1
    half = 2 ** (bits - 1)
    if scheme is QuantizationScheme.NORMAL:
        return -half, half - 1
    if scheme is QuantizationScheme.LLOYD or (scheme is QuantizationScheme.LOG2 and not is_signed):
        return 0, 2**bits - 1
    if is_symmetric or scheme in (QuantizationScheme.LOG2, QuantizationScheme.TERNARY):
        return 1 - half, half - 1
    return (-half, half - 1) if is_signed else (0, 2**bits - 1)


def lattice_of(params: QuantParams, *, zero_point: Tensor | None = None) -> Lattice:
    """The points of these parameters in units of their scale.

    Args:
        params: Scheme and code range.
        zero_point: The zero points in a shape that broadcasts to the values; None where one holds for all.
    """
    if params.scheme is QuantizationScheme.LOG2:
        return OctaveLattice(params.q_max, params.levels_per_octave, params.q_min < 0)
    if params.scheme is QuantizationScheme.BINARY:
        return SignLattice()
    if params.scheme is QuantizationScheme.NORMAL:
        return TableLattice(NORMAL_LEVELS)
    if params.scheme is QuantizationScheme.LLOYD:
        return LevelLattice(params.levels)
    if params.is_symmetric:
        return StepLattice(float(params.q_min), float(params.q_max))
    if zero_point is None:
        shift = int(params.zero_point)
        return StepLattice(float(params.q_min - shift), float(params.q_max - shift))
    return StepLattice((params.q_min - zero_point).float(), (params.q_max - zero_point).float())
