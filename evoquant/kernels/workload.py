"""A kernel case with random operands, ready to run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import KernelError
from evoquant.kernels.arrays import aligned, aligned_copy
from evoquant.kernels.case import CODES_IN_FLOAT, FP32, KernelCase, KernelOp
from evoquant.kernels.codes import ActivationCodes, activation_number
from evoquant.kernels.matmul import Matmul
from evoquant.kernels.native import isa_number, native
from evoquant.kernels.packed import Weights, output_size, pack_conv, pack_depthwise, pack_gemm
from evoquant.types import ConvGeometry
from evoquant.types.precision import NORMAL_LEVELS

Run = Callable[[int], float]
"""Takes a number of repetitions, returns the seconds they took."""

TYPICAL_SIGMAS = 3.5
"""Standard deviations of a weight channel inside its range of codes."""

_PRECISION = re.compile(r"w(\d+)a(\d+)(?:-(normal|log2|ternary|binary))?(?:-(loga|twin))?(?:-g(\d+))?")


@dataclass(frozen=True, slots=True)
class Precision:
    """The parts of ``KernelCase.precision``."""

    weight_bits: int
    activation_bits: int
    scheme: str | None = None
    activation_scheme: str | None = None
    group_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Precision | None:
        """The parts of a precision; None for ``fp32``.

        Raises:
            KernelError: If the text is not one.
        """
        if text == FP32:
            return None
        match = _PRECISION.fullmatch(text)
        if match is None:
            raise KernelError(f"Expected a precision such as 'fp32', 'w4a8' or 'w4a8-log2-g64', but got '{text}'.")
        weight, activation, scheme, activation_scheme, group = match.groups()
        return cls(int(weight), int(activation), scheme, activation_scheme, int(group) if group else None)

    @property
    def codebook(self) -> tuple[int, ...] | None:
        """The integers that weights have, or None for two's complement."""
        if self.scheme == "log2":
            octaves = [2**power for power in range(2 ** (self.weight_bits - 1) - 1)]
            return (*(-value for value in reversed(octaves)), 0, *octaves)
        return {"normal": NORMAL_LEVELS, "ternary": (-1, 0, 1), "binary": (-1, 1)}.get(self.scheme or "")

    def codes(self) -> ActivationCodes:
        """A quantizer for values of a normal distribution, or of a softmax with log2 codes."""
        if self.activation_scheme == "loga":
            return ActivationCodes.log2(1.0, bits=self.activation_bits)
        if self.activation_scheme == "twin":
            bits, half = self.activation_bits, 2 ** (self.activation_bits - 1)
            shift = 8 - bits  # the greatest codes that are bytes: these bound the 16-bit sums
            return ActivationCodes.twin(4.0 / half, half // 2, bits=bits, coarse_shift=shift)
        levels = 2**self.activation_bits
        return ActivationCodes.uniform(8.0 / levels, levels // 2, bits=self.activation_bits)


def random_weights(shape: tuple[int, ...], precision: Precision | None, rng: np.random.Generator) -> Weights:
    """A weight with normally distributed values, output channels first."""
    n = shape[0]
    bias = rng.standard_normal(n, np.float32)
    if precision is None:
        return Weights(rng.standard_normal(shape, np.float32), bias=bias)
    scales = np.full((n, shape[1] // precision.group_size) if precision.group_size else n, 0.01, np.float32)
    bits = min(precision.weight_bits, 8)
    half = 2 ** (bits - 1)
    if precision.codebook is not None:
        book = np.sort(np.asarray(precision.codebook, np.int8)).astype(np.float64)
        normal = rng.standard_normal(shape) * book.max() / TYPICAL_SIGMAS
        values = book[np.searchsorted((book[1:] + book[:-1]) / 2, normal)].astype(np.int8)
    else:
        normal = rng.standard_normal(shape) * max(half - 1, 0.5) / TYPICAL_SIGMAS
        values = np.clip(np.rint(normal), 1 - half if bits > 1 else -1, half - 1).astype(np.int8)
    return Weights(values, bits, precision.codebook, scales, bias, precision.group_size)


def workload(case: KernelCase, rng: np.random.Generator, *, isa: str | None = None) -> Run:
    """Prepare random operands for a case.

    Raises:
        KernelError: If there is no kernel for it.
    """
    op, _, activation = case.op.partition("+")
    case = replace(case, op=op)
    activation = activation or "identity"
    if op == KernelOp.GEMM:
        return _gemm(case, activation, rng, isa)
    if op in (KernelOp.CONV, KernelOp.DEPTHWISE):
        return _image(case, activation, rng, isa)
    if op == KernelOp.MATMUL:
        return _matmul(case, rng, isa)
    return _tensor(case, rng, isa_number(isa))


def _gemm(case: KernelCase, activation: str, rng: np.random.Generator, isa: str | None) -> Run:
    m, n, k = case.shape
    precision = Precision.parse(case.precision)
    weights = random_weights((n, k), precision, rng)
    packed = pack_gemm(*_operands(case, weights, precision), activation=activation, isa=isa)
    x, out = aligned_copy(rng.standard_normal((m, k), np.float32)), aligned((m, n))
    return lambda repeats: packed.seconds(x, out, repeats)


def _operands(
    case: KernelCase, weights: Weights, precision: Precision | None
) -> tuple[Weights, ActivationCodes | None]:
    """Weights and codes; codes beyond 8 bits take real weights."""
    if case.precision == CODES_IN_FLOAT:
        weights = replace(weights, values=weights.values.astype(np.float32), bits=None, codebook=None)
    return weights, precision.codes() if precision else None


def _image(case: KernelCase, activation: str, rng: np.random.Generator, isa: str | None) -> Run:
    precision = Precision.parse(case.precision)
    depthwise = case.op == KernelOp.DEPTHWISE
    height, width, channels = case.shape[:3]
    out_channels = channels if depthwise else case.shape[3]
    kh, kw, sh, sw, ph, pw, dh, dw = case.shape[3:] if depthwise else case.shape[4:-1]
    groups = channels if depthwise else case.shape[-1]
    geometry = ConvGeometry((kh, kw), (sh, sw), (ph, pw), (dh, dw), groups)
    weights = random_weights((out_channels, channels // groups, kh, kw), precision, rng)
    pack = pack_depthwise if depthwise else pack_conv
    weights, codes = _operands(case, weights, precision)
    packed = pack(weights, geometry, codes, activation=activation, isa=isa)
    x = aligned_copy(rng.standard_normal((height, width, channels), np.float32))
    out = aligned((*output_size((height, width), geometry), out_channels))
    return lambda repeats: packed.seconds(x, out, repeats)


def _matmul(case: KernelCase, rng: np.random.Generator, isa: str | None) -> Run:
    batch, m, n, k, transposed = case.shape
    precision = Precision.parse(case.precision)
    if precision is None:
        matmul = Matmul(isa=isa)
    else:
        matmul = Matmul(precision.codes(), b_scale=0.02, b_bits=max(precision.activation_bits, 2), isa=isa)
    a = aligned_copy(rng.standard_normal((1, batch, m, k), np.float32))
    b = aligned_copy(rng.standard_normal((1, batch, n, k) if transposed else (1, batch, k, n), np.float32))
    second = b.transpose(0, 1, 3, 2) if transposed else b
    out = aligned((1, batch, m, n))
    return lambda repeats: matmul.seconds(a, second, out, repeats)


def _tensor(case: KernelCase, rng: np.random.Generator, isa: int) -> Run:
    module = native()
    x = aligned_copy(rng.standard_normal(case.shape, np.float32))
    out = aligned(case.shape)
    if case.op == KernelOp.SOFTMAX:
        return lambda repeats: module.softmax(isa, x, out, repeats)
    if case.op in (KernelOp.LAYER_NORM, KernelOp.GROUP_NORM):
        weight, bias = rng.standard_normal((2, case.shape[1]), np.float32)
        if case.op == KernelOp.GROUP_NORM:
            return lambda repeats: module.group_norm(isa, x, 1, weight, bias, 1e-5, out, repeats)
        return lambda repeats: module.layer_norm(isa, x, weight, bias, 1e-5, out, repeats)
    if case.op == KernelOp.MEAN:
        mean = np.empty(case.shape[1], np.float32)
        return lambda repeats: module.mean_rows(isa, x, mean, repeats)
    if case.op == KernelOp.COPY:
        return lambda repeats: module.activate(isa, 0, x, out, repeats)
    if case.op in (KernelOp.ADD, KernelOp.MUL):
        other = aligned_copy(rng.standard_normal(case.shape, np.float32))
        function = getattr(module, case.op)
        return lambda repeats: function(isa, x, other, out, repeats)
    if case.op in (KernelOp.QUANTIZE, KernelOp.DEQUANTIZE):
        return _conversion(case, x, isa)
    kind = int(activation_number(case.op))
    return lambda repeats: module.activate(isa, kind, x, out, repeats)


def _conversion(case: KernelCase, x: NDArray[np.float32], isa: int) -> Run:
    module = native()
    quantizer = ActivationCodes.uniform(0.03, 128).native()
    codes = np.zeros(x.shape, np.uint8)
    if case.op == KernelOp.QUANTIZE:
        return lambda repeats: module.quantize_u8(isa, x, quantizer, codes, repeats)
    return lambda repeats: module.dequantize_u8(isa, codes, quantizer, x, repeats)
