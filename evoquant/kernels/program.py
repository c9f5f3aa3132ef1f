"""A network as a flat list of kernel calls on fixed arrays, run without the interpreter in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, Values
from evoquant.kernels.attention import Attention
from evoquant.kernels.codes import ActivationCodes, activation_number
from evoquant.kernels.matmul import Matmul
from evoquant.kernels.native import isa_number, native
from evoquant.kernels.packed import PackedConv, PackedDepthwise, PackedGemm


class Program:
    """Calls in the order in which they were added; each reads and writes the arrays that it was given.

    Operands are checked once, when a call is added, and kept alive. Values may change between runs, memory may not.

    Args:
        isa: Instruction set of the operations on tensors; None takes the best, capped by ``EVOQUANT_ISA``.
    """

    __slots__ = ("_isa", "_program")

    def __init__(self, *, isa: str | None = None) -> None:
        self._isa = isa_number(isa)
        self._program: Any = native().Program()

    def __len__(self) -> int:
        return len(self._program)

    def run(self, repeats: int = 1) -> float:
        """Run all calls so often, with the interpreter lock released; returns the seconds it took."""
        try:
            return float(self._program.run(repeats))
        except RuntimeError as error:
            raise KernelError(str(error)) from error

    def step_seconds(self, repeats: int) -> list[float]:
        """The mean time of each call over so many runs."""
        return list(self._program.step_seconds(repeats))

    def product(
        self,
        packed: PackedGemm | PackedConv | PackedDepthwise,
        x: Values,
        out: Values,
        *,
        residual: FloatArray | None = None,
        to: ActivationCodes | None = None,
    ) -> None:
        """``packed(x, to=to)`` into ``out``; see ``PackedGemm``, ``PackedConv`` and ``PackedDepthwise``."""
        names = {PackedGemm: "gemm", PackedConv: "conv", PackedDepthwise: "depthwise"}
        result = None if to is None else to.native()
        self._add(names[type(packed)], packed._handle, x, packed._quantizer, packed._activation, residual, out, result)

    def matmul(self, matmul: Matmul, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        """``matmul(a, b)`` into ``out``; see ``Matmul``."""
        quantizer = (matmul._quantizer, matmul._b_scales, matmul._b_max, matmul._factor)
        self._add("matmul", matmul._isa, a, b, *quantizer, out)

    def attention(self, attention: Attention, q: FloatArray, k: FloatArray, v: FloatArray, out: FloatArray) -> None:
        """``attention(q, k, v)`` into ``out``; see ``Attention``."""
        self._add("attention", attention._isa, q, k, v, attention._scores, attention._weighted, attention.relative, out)

    def activate(self, kind: str, x: FloatArray, out: FloatArray) -> None:
        """An activation function of each value; ``identity`` copies."""
        self._add("activate", self._isa, int(activation_number(kind)), x, out)

    def add(self, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        """The sum of two arrays of equal size."""
        self._add("add", self._isa, a, b, out)

    def mul(self, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
        """The product of two arrays of equal size."""
        self._add("mul", self._isa, a, b, out)

    def scale_rows(self, x: FloatArray, scale: FloatArray, shift: FloatArray | None, out: FloatArray) -> None:
        """``x * scale + shift`` with one scale per column of (rows, columns)."""
        self._add("scale_rows", self._isa, x, scale, shift, out)

    def softmax(self, x: FloatArray, out: FloatArray) -> None:
        """The softmax of each row of (rows, columns)."""
        self._add("softmax", self._isa, x, out)

    def layer_norm(self, x: FloatArray, weight: FloatArray, bias: FloatArray, epsilon: float, out: FloatArray) -> None:
        """Layer normalization of each row of (rows, columns)."""
        self._add("layer_norm", self._isa, x, weight, bias, epsilon, out)

    def group_norm(
        self, x: FloatArray, weight: FloatArray, bias: FloatArray, epsilon: float, out: FloatArray, *, groups: int = 1
    ) -> None:
        """As ``layer_norm``, but all rows of a group of neighbouring columns share one mean and one variance."""
        self._add("group_norm", self._isa, x, groups, weight, bias, epsilon, out)

    def mean_rows(self, x: FloatArray, out: FloatArray) -> None:
        """The mean over the rows of (rows, columns) into (columns,)."""
        self._add("mean_rows", self._isa, x, out)

    def max_pool(self, x: FloatArray, kernel: int, stride: int, padding: int, out: FloatArray) -> None:
        """Maximum over square windows of an image (height, width, channels)."""
        self._add("max_pool", self._isa, x, kernel, stride, padding, out)

    def copy(self, x: FloatArray, out: FloatArray, *, factor: float = 1.0) -> None:
        """``x * factor`` into ``out``; both may have any strides, also those of a transposed or repeated view."""
        self._add("copy", x, out, factor)

    def _add(self, name: str, *operands: object) -> None:
        add: Callable[..., None] = getattr(self._program, name)
        try:
            add(*operands)
        except (TypeError, ValueError, RuntimeError) as error:
            shapes = ", ".join(_described(operand) for operand in operands if isinstance(operand, np.ndarray))
            raise KernelError(f"program: {name} does not take these operands ({shapes}): {error}") from error


def copy_strided(x: FloatArray, out: FloatArray) -> None:
    """Copy between arrays of one shape and any strides.

    Raises:
        KernelError: If the shapes differ.
    """
    try:
        native().copy(x, out, 1.0)
    except (TypeError, ValueError) as error:
        raise KernelError(f"copy: {error}; got {_described(x)} and {_described(out)}.") from error


def _described(array: np.ndarray[Any, Any]) -> str:
    return f"{array.dtype} {array.shape} with strides {array.strides}"
