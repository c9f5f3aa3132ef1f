"""Batched products of two activations, as attention needs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, check_rows, described
from evoquant.kernels.codes import LARGEST_WEIGHT_CODE, ActivationCodes, Operand
from evoquant.kernels.native import isa_number, native


class Matmul:
    """``factor * (a @ b)`` over two batch axes; both operands are quantized at every call, or none.

    Args:
        codes: How ``a`` is quantized; None multiplies real values.
        b_scale: Scale of the symmetric codes of ``b``: one, or one for each index of the second batch axis (a head).
        b_bits: Bits of these codes, at most 8.
        factor: What the result is multiplied by, such as the scale of an attention.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Raises:
        KernelError: If the codes have no kernel.
    """

    __slots__ = ("_b_max", "_b_scales", "_factor", "_isa", "_quantizer", "isa")

    def __init__(
        self,
        codes: ActivationCodes | None = None,
        *,
        b_scale: float | Sequence[float] = 1.0,
        b_bits: int = 8,
        factor: float = 1.0,
        isa: str | None = None,
    ) -> None:
        if codes is not None and codes.operand is Operand.CODES_F32:
            raise KernelError(f"matmul: activations of more than 8 bits have no kernel, but got {codes}.")
        if not 2 <= b_bits <= 8:
            raise KernelError(f"matmul: b_bits must lie in [2, 8], but got {b_bits}.")
        self._isa = isa_number(isa)
        self.isa: str = native().isa_name(self._isa)
        self._quantizer = None if codes is None else codes.native()
        self._b_scales = None if codes is None else np.atleast_1d(np.asarray(b_scale, np.float32))
        self._b_max = min(2 ** (b_bits - 1) - 1, LARGEST_WEIGHT_CODE)
        self._factor = factor

    def __call__(self, a: FloatArray, b: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
        """Multiply.

        Args:
            a: (batch, heads, m, k), the last axis contiguous.
            b: (batch, heads, k, n), one of the last two axes contiguous (a transposed view is fine).
            out: (batch, heads, m, n), the last axis contiguous; None makes a new array.

        Returns:
            (batch, heads, m, n).

        Raises:
            KernelError: If an array does not fit.
        """
        out = self._checked(a, b, out)
        self.seconds(a, b, out, 1)
        return out

    def seconds(self, a: FloatArray, b: FloatArray, out: FloatArray, repeats: int) -> float:
        """The time of so many calls, without the interpreter."""
        return float(
            native().matmul(self._isa, a, b, self._quantizer, self._b_scales, self._b_max, self._factor, out, repeats)
        )

    def _checked(self, a: FloatArray, b: FloatArray, out: FloatArray | None) -> FloatArray:
        check_rows("matmul", "a", a, (None, None, None, None))
        batch, heads, m, k = a.shape
        fits = isinstance(b, np.ndarray) and b.ndim == 4 and b.dtype == np.float32 and b.shape[:3] == (batch, heads, k)
        if not fits or not b.flags.aligned or b.itemsize not in (b.strides[2], b.strides[3]):
            raise KernelError(
                f"matmul: expected b float32 ({batch}, {heads}, {k}, n) with one of the last axes contiguous, "
                f"but got {described(b)}."
            )
        if self._b_scales is not None and self._b_scales.size not in (1, heads):
            raise KernelError(f"matmul: expected 1 or {heads} scales of b, but got {self._b_scales.size}.")
        shape = (batch, heads, m, b.shape[3])
        if out is None:
            return np.empty(shape, np.float32)
        check_rows("matmul", "out", out, shape)
        return out
