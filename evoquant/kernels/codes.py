"""How the activations that a kernel multiplies become codes, and the activation functions it can end with."""

from __future__ import annotations

import math
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
    ``coarse_shift`` a code beyond ``coarse_from`` goes on to the nearest of that plus multiples of ``2**coarse_shift``,
    ties upwards.

    Attributes:
        scale: Real value of one step, positive.
        zero_point: Code of zero.
        q_min: Smallest code.
        q_max: Greatest code.
        log2_levels: Number of powers of two, at most 15; 0 for uniform codes.
        coarse_from: The last of the codes that are one step apart, if others are further.
        coarse_shift: Logarithm of the distance of those beyond; 0 for uniform codes.
    """

    scale: float
    zero_point: int = 0
    q_min: int = 0
    q_max: int = LARGEST_U8
    log2_levels: int = 0
    coarse_from: int = 0
    coarse_shift: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise KernelError(f"scale must be positive and finite, but got {self.scale}.")
        if not self.q_min <= self.zero_point <= self.q_max or self.q_min >= self.q_max:
            raise KernelError(
                f"Expected q_min <= zero_point <= q_max, but got {self.q_min}, {self.zero_point}, {self.q_max}."
            )
        if not 0 <= self.log2_levels <= 15:
            raise KernelError(f"log2_levels must lie in [0, 15], but got {self.log2_levels}.")
        if self.coarse_shift and (self.q_max - self.coarse_from) % (1 << self.coarse_shift):
            raise KernelError(
                f"q_max must be coarse_from plus a multiple of 2^{self.coarse_shift}, but got {self.q_max} and "
                f"{self.coarse_from}."
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
    def twin(cls, scale: float, zero_point: int, *, bits: int, coarse_shift: int) -> Self:
        """Half of the codes of this width one step apart, the others ``2**coarse_shift`` steps."""
        half = 2 ** (bits - 1)
        top = half - 1 + (half << coarse_shift)
        return cls(scale, zero_point, 0, top, coarse_from=half - 1, coarse_shift=coarse_shift)

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
            self.coarse_from,
            self.coarse_shift,
        )
