"""Attention as one kernel: the scores and their softmax stay in the cache."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, check_rows, described
from evoquant.kernels.matmul import Matmul
from evoquant.kernels.native import native


class Part(IntEnum):
    """What of an attention is run; parts are there to be timed apart."""

    WHOLE = 0
    SCORES = 1
    WEIGHTED = 2


class Attention:
    """``weighted(softmax(scores(q, k)), v)``, bit for bit, without the scores in memory.

    Where rows are relative, the second product takes each row of the softmax in units of its greatest value, and its
    results are multiplied by that value: the same in real numbers, but every row reaches the greatest code.

    Args:
        scores: The product of queries and keys.
        weighted: The product of the softmax and the values.
        relative: Whether rows are relative.

    Raises:
        KernelError: If both products are not of one instruction set.
    """

    __slots__ = ("_isa", "_scores", "_weighted", "isa", "relative")

    def __init__(self, scores: Matmul, weighted: Matmul, *, relative: bool = False) -> None:
        if scores.isa != weighted.isa:
            raise KernelError(f"attention: expected one instruction set, but got {scores.isa} and {weighted.isa}.")
        self.isa = scores.isa
        self.relative = relative
        self._isa = scores._isa
        self._scores, self._weighted = _native(scores), _native(weighted)

    def __call__(self, q: FloatArray, k: FloatArray, v: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
        """Attend.

        Args:
            q: (batch, heads, m, k), the last axis contiguous.
            k: (batch, heads, k, n), one of the last two axes contiguous (a transposed view is fine).
            v: (batch, heads, n, d), likewise.
            out: (batch, heads, m, d), the last axis contiguous; None makes a new array.

        Returns:
            (batch, heads, m, d).

        Raises:
            KernelError: If an array does not fit.
        """
        check_rows("attention", "q", q, (None, None, None, None))
        batch, heads, m, depth = q.shape
        _check_second("k", k, (batch, heads, depth))
        _check_second("v", v, (batch, heads, k.shape[3]))
        shape = (batch, heads, m, v.shape[3])
        if out is None:
            out = np.empty(shape, np.float32)
        check_rows("attention", "out", out, shape)
        try:
            self.seconds(q, k, v, out, 1)
        except (RuntimeError, ValueError) as error:
            raise KernelError(str(error)) from error
        return out

    def seconds(
        self, q: FloatArray, k: FloatArray, v: FloatArray, out: FloatArray, repeats: int, *, part: Part = Part.WHOLE
    ) -> float:
        """The time of so many calls, without the interpreter; what is in ``out`` after a part is void."""
        products = (self._scores, self._weighted, self.relative)
        return float(native().attention(self._isa, q, k, v, *products, out, repeats, int(part)))


def _native(product: Matmul) -> Any:  # noqa: ANN401 - a type of the native module
    return native().AttentionProduct(product._quantizer, product._b_scales, product._b_max, product._factor)


def _check_second(name: str, x: FloatArray, shape: tuple[int, int, int]) -> None:
    fits = isinstance(x, np.ndarray) and x.ndim == 4 and x.dtype == np.float32 and x.shape[:3] == shape
    if not fits or not x.flags.aligned or x.itemsize not in (x.strides[2], x.strides[3]):
        raise KernelError(
            f"attention: expected {name} float32 ({shape[0]}, {shape[1]}, {shape[2]}, *) with one of the last axes "
            f"contiguous, but got {described(x)}."
        )
