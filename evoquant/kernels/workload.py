"""A kernel case with random operands, ready to run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, Values, aligned, aligned_codes, aligned_copy
from evoquant.kernels.attention import Attention, Part
from evoquant.kernels.case import CODES_IN_FLOAT, FP32, KernelCase, KernelOp
from evoquant.kernels.codes import LARGEST_U8, ActivationCodes, activation_number
from evoquant.kernels.matmul import Matmul
from evoquant.kernels.native import isa_number, native
from evoquant.kernels.packed import (
    PackedConv,
    PackedDepthwise,
    PackedGemm,
    Weights,
    output_size,
    pack_conv,
    pack_depthwise,
    pack_gemm,
)
from evoquant.types import ConvGeometry
from evoquant.types.precision import NORMAL_LEVELS

Run = Callable[[int], float]
"""Takes a number of repetitions, returns the seconds they took."""


@dataclass(frozen=True)
class PackedRun:
    """A ``Run`` of a packed weight."""

    packed: PackedGemm | PackedConv | PackedDepthwise
    x: Values
    out: Values
    to: ActivationCodes | None

    def __call__(self, repeats: int) -> float:
        """The seconds of so many calls."""
        return self.packed.seconds(self.x, self.out, repeats, to=self.to)


SIGMAS_OF_32 = 2.4
SIGMAS_MORE = 0.28
"""Standard deviations inside the range of codes of 32 weights with one scale, and how many more for each doubling:
within 0.3 of the mean of each width of mobilevit_xxs, mobilevitv2_050, MobileNetV2 and DeiT-Tiny up to 512 weights. The
greater the codes, the fewer products can be added in 16 bits."""
LOG2_SIGMA = 0.1
"""Standard deviation of log2 weights in greatest levels: scales leave one or two of these without weights."""

_PRECISION = re.compile(r"w(\d+)a(\d+)(?:-(normal|log2|ternary|binary))?(?:-(loga|lloyd))?(?:-g(\d+))?")
_ENDS = re.compile(r"(?P<rest>.*?)(?P<reads>-u8in)?(?P<writes>-u8out|-lloydout)?")


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
        if self.activation_scheme == "lloyd":
            share = np.linspace(-1.0, 1.0, 2**self.activation_bits)
            levels = np.rint(LARGEST_U8 // 2 * share * (0.5 + 0.5 * np.abs(share))).astype(int)  # denser in the middle
            levels -= levels[len(levels) // 2]
            return ActivationCodes.uneven(8.0 / LARGEST_U8, levels.tolist())
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
    together = precision.group_size or math.prod(shape[1:])
    sigmas = SIGMAS_OF_32 + SIGMAS_MORE * math.log2(together / 32)
    if precision.codebook is not None:
        book = np.sort(np.asarray(precision.codebook, np.int8)).astype(np.float64)
        sigma = LOG2_SIGMA if precision.scheme == "log2" else 1.0 / sigmas
        normal = rng.standard_normal(shape) * book.max() * sigma
        values = book[np.searchsorted((book[1:] + book[:-1]) / 2, normal)].astype(np.int8)
    else:
        normal = rng.standard_normal(shape) * max(half - 1, 0.5) / sigmas
        values = np.clip(np.rint(normal), 1 - half if bits > 1 else -1, half - 1).astype(np.int8)
    return Weights(values, bits, precision.codebook, scales, bias, precision.group_size)


def workload(case: KernelCase, rng: np.random.Generator, *, isa: str | None = None) -> Run:
    """Prepare random operands for a case.

    Raises:
        KernelError: If there is no kernel for it.
    """
    op, _, activation = case.op.partition("+")
    if case.op in (KernelOp.SCORES, KernelOp.WEIGHTED):
        return _attention(case, rng, isa)
    ends = _ENDS.fullmatch(case.precision)
    assert ends is not None, "both ends may be missing"
    case = replace(case, op=op, precision=ends["rest"])
    activation = activation or "identity"
    if op in (KernelOp.GEMM, KernelOp.CONV, KernelOp.DEPTHWISE):
        product = _gemm if op == KernelOp.GEMM else _image
        packed, shape, out_shape = product(case, activation, rng, isa)
        return _between(packed, shape, out_shape, rng, reads=bool(ends["reads"]), writes=ends["writes"])
    if op == KernelOp.MATMUL:
        return _matmul(case, rng, isa)
    return _tensor(case, rng, isa_number(isa))


Shape = tuple[int, ...]


def _between(
    packed: PackedGemm | PackedConv | PackedDepthwise,
    shape: Shape,
    out_shape: Shape,
    rng: np.random.Generator,
    *,
    reads: bool,
    writes: str | None,
) -> PackedRun:
    """A product between real values, or codes of 8 bits at either end."""
    x: Values = aligned_copy(rng.standard_normal(shape, np.float32))
    if reads:
        x = aligned_codes(shape)
        x[...] = rng.integers(0, packed.largest_code + 1, shape)
    out: Values = aligned_codes(out_shape) if writes else aligned(out_shape)
    given = {"-u8out": Precision(8, 8), "-lloydout": Precision(8, 4, activation_scheme="lloyd")}
    to = given[writes].codes() if writes else None
    return PackedRun(packed, x, out, to)


def _gemm(
    case: KernelCase, activation: str, rng: np.random.Generator, isa: str | None
) -> tuple[PackedGemm, Shape, Shape]:
    m, n, k = case.shape
    precision = Precision.parse(case.precision)
    weights = random_weights((n, k), precision, rng)
    return pack_gemm(*_operands(case, weights, precision), activation=activation, isa=isa), (m, k), (m, n)


def _operands(
    case: KernelCase, weights: Weights, precision: Precision | None
) -> tuple[Weights, ActivationCodes | None]:
    """Weights and codes; codes beyond 8 bits take real weights."""
    if case.precision == CODES_IN_FLOAT:
        weights = replace(weights, values=weights.values.astype(np.float32), bits=None, codebook=None)
    return weights, precision.codes() if precision else None


def _image(
    case: KernelCase, activation: str, rng: np.random.Generator, isa: str | None
) -> tuple[PackedConv | PackedDepthwise, Shape, Shape]:
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
    return packed, (height, width, channels), (*output_size((height, width), geometry), out_channels)


def _matmul(case: KernelCase, rng: np.random.Generator, isa: str | None) -> Run:
    matmul = _activation_product(case, isa)
    a, b = _activations(case, rng)
    batch, m, n, *_ = case.shape
    out = aligned((1, batch, m, n))
    return lambda repeats: matmul.seconds(a, b, out, repeats)


def _activation_product(case: KernelCase, isa: str | None) -> Matmul:
    precision = Precision.parse(case.precision)
    if precision is None:
        return Matmul(isa=isa)
    return Matmul(precision.codes(), b_scale=0.02, b_bits=max(precision.activation_bits, 2), isa=isa)


def _activations(case: KernelCase, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Both operands of a product: (1, batch, m, k) and (1, batch, k, n), the second perhaps transposed in memory."""
    batch, m, n, k, transposed = case.shape
    a = aligned_copy(rng.standard_normal((1, batch, m, k), np.float32))
    b = aligned_copy(rng.standard_normal((1, batch, n, k) if transposed else (1, batch, k, n), np.float32))
    return a, b.transpose(0, 1, 3, 2) if transposed else b


def _attention(case: KernelCase, rng: np.random.Generator, isa: str | None) -> Run:
    """One of the two products of an attention; the other is as small as it can be, and is not run."""
    batch, m, n, k, _ = case.shape
    timed, other = _activation_product(case, isa), Matmul(isa=isa)
    a, b = _activations(case, rng)
    if case.op == KernelOp.SCORES:
        attention, part = Attention(timed, other), Part.SCORES
        q, keys, values = a, b, aligned((1, batch, n, 1))
    else:
        attention, part = Attention(other, timed), Part.WEIGHTED
        q, keys, values = aligned((1, batch, m, 1)), aligned((1, batch, 1, k)), b
    out = aligned((1, batch, m, values.shape[3]))
    return lambda repeats: attention.seconds(q, keys, values, out, repeats, part=part)


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
