"""How the activations that a kernel multiplies become codes, and the activation functions it can end with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from evoquant.errors import KernelError
from evoquant.kernels.native import native

LARGEST_U8 = 255
LARGEST_WEIGHT_CODE = 127


class Operand(IntEnum):
    """What the inner loop of a kernel multiplies; the numbers are those of the C header."""

    F32 = 0
    U8 = 1
    S16 = 2
    CODES_F32 = 3


class Activation(IntEnum):
    """The function that an epilogue applies; the numbers are those of the C header."""

    IDENTITY = 0
    RELU = 1
    SILU = 2
    GELU = 3
    HARD_SWISH = 4
    SIGMOID = 5
    HARD_SIGMOID = 6
    RELU6 = 7


def activation_number(name: str) -> Activation:
    """The activation with this name in lower case: ``identity``, ``relu``, ``silu``, ``gelu``, ``hard_swish``, ...

    Raises:
        KernelError: If there is none.
    """
    try:
        return Activation[name.upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in Activation)
        raise KernelError(f"Unknown activation '{name}'. Available: {known}.") from None


@dataclass(frozen=True, slots=True)
class ActivationCodes:
    """A quantizer of activations with one scale.

    Uniform: ``code = clamp(round(x * (1 / scale)) + zero_point, q_min, q_max)``, ties to even. Kernels work on codes
    that start at zero, so a signed range is moved; results do not change. With ``log2_levels`` the values are
    ``scale * 2**-i`` for i in [0, log2_levels) and zero, to the nearest, and the other fields are ignored. With
    ``levels`` a code goes on to the nearest of them, half way to the lower one.

    Attributes:
        scale: Real value of one step, positive.
        zero_point: Code of zero.
        q_min: Smallest code.
        q_max: Greatest code.
        log2_levels: Number of powers of two, at most 15; 0 for uniform codes.
        levels: The codes that there are, ascending from 0, the zero point among them; empty: all.
    """

    scale: float
    zero_point: int = 0
    q_min: int = 0
    q_max: int = LARGEST_U8
    log2_levels: int = 0
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise KernelError(f"scale must be positive and finite, but got {self.scale}.")
        if not self.q_min <= self.zero_point <= self.q_max or self.q_min >= self.q_max:
            raise KernelError(
                f"Expected q_min <= zero_point <= q_max, but got {self.q_min}, {self.zero_point}, {self.q_max}."
            )
        if not 0 <= self.log2_levels <= 15:
            raise KernelError(f"log2_levels must lie in [0, 15], but got {self.log2_levels}.")
        ends = (self.q_min, self.q_max)
        if self.levels and (
            self.zero_point not in self.levels or ends != (0, self.levels[-1]) or self.q_max > LARGEST_U8
        ):
            raise KernelError(
                f"Levels must lie in [0, {LARGEST_U8}] and have the zero point {self.zero_point} among them, but got "
                f"{self.levels} with codes from {self.q_min} to {self.q_max}."
            )

    @classmethod
    def uniform(cls, scale: float, zero_point: int = 0, *, bits: int = 8, is_symmetric: bool = False) -> Self:
        """Codes of this width: from zero upwards, or as many below zero as above if symmetric."""
        if is_symmetric:
            return cls(scale, 0, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        return cls(scale, zero_point, 0, 2**bits - 1)

    @classmethod
    def log2(cls, scale: float, *, bits: int) -> Self:
        """Powers of two up to ``scale`` and zero, in codes of this width."""
        return cls(scale, log2_levels=2**bits - 1)

    @classmethod
    def uneven(cls, scale: float, levels: Sequence[int]) -> Self:
        """These multiples of the scale, ascending; zero is one of them."""
        return cls(scale, -levels[0], 0, levels[-1] - levels[0], levels=tuple(level - levels[0] for level in levels))

    @property
    def operand_max(self) -> int:
        """The greatest integer that is multiplied."""
        return 1 << (self.log2_levels - 1) if self.log2_levels else self.q_max - self.q_min

    @property
    def operand(self) -> Operand:
        """The type that holds these integers; beyond 8 bits uniform codes are multiplied in floating point."""
        if self.operand_max <= LARGEST_U8:
            return Operand.U8
        return Operand.S16 if self.log2_levels else Operand.CODES_F32

    def native(self) -> object:
        """The native quantizer, moved so that codes start at zero where they are stored as unsigned bytes."""
        offset = 0 if self.operand is Operand.CODES_F32 else self.q_min
        return native().Quantizer(
            self.scale,
            self.zero_point - offset,
            self.q_min - offset,
            self.q_max - offset,
            self.log2_levels,
            list(self.levels),
        )
