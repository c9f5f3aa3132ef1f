"""What is timed: one kernel, its whole geometry and its precision. Equal cases cost the same."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from evoquant.errors import KernelError
from evoquant.types import LayerQuantConfig, Op, OpKind, QuantizationGranularity, QuantizationScheme, Role
from evoquant.types.precision import FLOAT_BITS, MAX_LOG2_BITS

FP32 = "fp32"
CODES_IN_FLOAT = "w16a16"


class KernelOp(StrEnum):
    """Kernels that can be timed, with the order of the numbers in ``KernelCase.shape``."""

    GEMM = "gemm"
    """(m, n, k): m rows of activations, n output channels."""
    CONV = "conv"
    """(height, width, in_channels, out_channels, kernel h, w, stride h, w, padding h, w, dilation h, w, groups)."""
    DEPTHWISE = "depthwise"
    """(height, width, channels, kernel h, w, stride h, w, padding h, w, dilation h, w)."""
    MATMUL = "matmul"
    """(batch, m, n, k, transposed): transposed is 1 where the second operand has k contiguous, as in q.k."""
    SCORES = "matmul+softmax"
    """As ``matmul``: q.k and its softmax as the first part of an attention kernel."""
    WEIGHTED = "softmax+matmul"
    """As ``matmul``: the softmax times v as the second part."""
    SOFTMAX = "softmax"
    """(rows, columns)."""
    LAYER_NORM = "layer_norm"
    """(rows, columns)."""
    GROUP_NORM = "group_norm"
    """(rows, columns): one mean and one variance for all."""
    MEAN = "mean"
    """(rows, channels)."""
    COPY = "copy"
    """(elements,)."""
    ADD = "add"
    """(elements,)."""
    MUL = "mul"
    """(elements,)."""
    RELU = "relu"
    """(elements,)."""
    RELU6 = "relu6"
    """(elements,)."""
    SILU = "silu"
    """(elements,)."""
    GELU = "gelu"
    """(elements,)."""
    SIGMOID = "sigmoid"
    """(elements,)."""
    HARD_SWISH = "hard_swish"
    """(elements,)."""
    HARD_SIGMOID = "hard_sigmoid"
    """(elements,)."""
    QUANTIZE = "quantize"
    """(elements,)."""
    DEQUANTIZE = "dequantize"
    """(elements,)."""


@dataclass(frozen=True, slots=True, order=True)
class KernelCase:
    """One thing that is executed and timed.

    A GEMM, convolution, depthwise convolution or matmul takes float32 tensors and gives float32 tensors, unless its
    precision says that it takes or gives codes. Its time holds everything executed for that: quantization of the input
    (of both, for a matmul), packing, decoding of weights, the integer product, zero-point correction, scale, bias, and
    rounding to codes. So a network costs the sum of its cases, and needs no conversion cases between its operations.

    Attributes:
        op: The kernel; a value of ``KernelOp``.
        shape: Its geometry in the order that ``KernelOp`` states; images have batch size 1.
        precision: ``fp32``; ``w{bits}a{bits}`` with the suffix ``-normal``, ``-log2``, ``-ternary`` or ``-binary`` of
            a weight codebook, ``-loga`` for log2 activations, ``-lloyd`` for those with uneven levels, ``-g{size}`` for
            a scale per group; ``w16a16`` for codes beyond 8 bits, which are multiplied in floating point; then
            ``-u8in`` where the input comes as codes of 8 bits, and ``-u8out`` where the result goes as such, or
            ``-lloydout`` as those of uneven levels.
    """

    op: str
    shape: tuple[int, ...]
    precision: str = FP32

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 for operations on tensors."""
        if self.op == KernelOp.GEMM:
            m, n, k = self.shape
            return m * n * k
        if self.op in (KernelOp.MATMUL, KernelOp.SCORES, KernelOp.WEIGHTED):
            batch, m, n, k, _ = self.shape
            return batch * m * n * k
        if self.op == KernelOp.DEPTHWISE:
            h, w, c, kh, kw, sh, sw, ph, pw, dh, dw = self.shape
            return _length(h, ph, dh, kh, sh) * _length(w, pw, dw, kw, sw) * c * kh * kw
        if self.op == KernelOp.CONV:
            h, w, c, n, kh, kw, sh, sw, ph, pw, dh, dw, groups = self.shape
            return _length(h, ph, dh, kh, sh) * _length(w, pw, dw, kw, sw) * n * kh * kw * c // groups
        return 0


def _length(size: int, padding: int, dilation: int, kernel: int, stride: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def case_of(op: Op, config: LayerQuantConfig) -> KernelCase:
    """What is executed for an operation of a network at this precision.

    A weight that is quantized beside a real input, or a real weight beside a quantized input, is executed in floating
    point (the weight is dequantized once). Weights with a zero point need one bit more than they are stored with.
    Power-of-two scales cost what real scales cost.

    Raises:
        KernelError: If no kernel executes this precision; the message names the operation.
    """
    if op.kind is OpKind.MATMUL:
        batch, m, n, k = op.gemm
        transposed = int(op.role is Role.ATTENTION_QK)
        return KernelCase(KernelOp.MATMUL, (batch, m, n, k, transposed), _matmul_precision(op, config))
    geometry = op.geometry
    if geometry is None:
        return KernelCase(KernelOp.GEMM, op.gemm[1:], _precision(op, config, op.weight_shape[1]))
    height, width = op.input_shape[-2:]
    channels, out_channels = op.input_shape[-3], op.weight_shape[0]
    flat = (*geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation)
    if geometry.groups == channels == out_channels and channels > 1:
        return KernelCase(KernelOp.DEPTHWISE, (height, width, channels, *flat), _depthwise_precision(op, config))
    precision = _precision(op, config, channels // geometry.groups)
    if flat == (1, 1, 1, 1, 0, 0, 1, 1) and geometry.groups == 1:
        return KernelCase(KernelOp.GEMM, (height * width, out_channels, channels), precision)
    return KernelCase(KernelOp.CONV, (height, width, channels, out_channels, *flat, geometry.groups), precision)


_ELEMENTWISE = {
    "add": KernelOp.ADD, "sub": KernelOp.ADD, "mul": KernelOp.MUL, "div": KernelOp.MUL, "relu": KernelOp.RELU,
    "relu6": KernelOp.RELU6, "hardtanh": KernelOp.RELU6, "clamp": KernelOp.RELU6, "silu": KernelOp.SILU,
    "gelu": KernelOp.GELU, "sigmoid": KernelOp.SIGMOID, "hardswish": KernelOp.HARD_SWISH,
    "hardsigmoid": KernelOp.HARD_SIGMOID, "copy": KernelOp.COPY, "clone": KernelOp.COPY, "contiguous": KernelOp.COPY,
    "cat": KernelOp.COPY,
}  # fmt: skip
_ROWWISE = {
    "softmax": KernelOp.SOFTMAX, "_softmax": KernelOp.SOFTMAX, "layer_norm": KernelOp.LAYER_NORM,
    "native_layer_norm": KernelOp.LAYER_NORM, "group_norm": KernelOp.GROUP_NORM, "mean": KernelOp.MEAN,
    "sum": KernelOp.MEAN, "adaptive_avg_pool2d": KernelOp.MEAN,
}  # fmt: skip


def float_case(node_kind: str, elements: int, *, columns: int | None = None) -> KernelCase:
    """A floating-point operation that remains between quantized ones.

    Args:
        node_kind: ``Node.kind``: softmax, layer_norm, group_norm, mean, sum, add, mul, silu, gelu, relu, hardswish, ...
        elements: Number of values it reads (of one operand).
        columns: Length of a row of softmax and norms, number of results of mean and sum; None takes one row.

    Raises:
        KernelError: If no kernel does it, or the rows do not divide the elements.
    """
    if elements < 1 or (columns is not None and (columns < 1 or elements % columns)):
        raise KernelError(f"{node_kind}: expected whole rows, but got {elements} elements in rows of {columns}.")
    if node_kind in _ELEMENTWISE:
        return KernelCase(_ELEMENTWISE[node_kind], (elements,))
    if node_kind in _ROWWISE:
        length = columns or elements
        return KernelCase(_ROWWISE[node_kind], (elements // length, length))
    known = ", ".join(sorted([*_ELEMENTWISE, *_ROWWISE]))
    raise KernelError(f"No kernel for the operation '{node_kind}'. Available: {known}.")


def conversion_case(elements: int, *, to_codes: bool) -> KernelCase:
    """A conversion of a tensor on its own: float32 to bytes, or back.

    Networks of ``case_of`` cases have none: every kernel quantizes its input itself.
    """
    if elements < 1:
        raise KernelError(f"conversion: expected at least one element, but got {elements}.")
    if to_codes:
        return KernelCase(KernelOp.QUANTIZE, (elements,), "f32-u8")
    return KernelCase(KernelOp.DEQUANTIZE, (elements,), "u8-f32")


_ACTIVATION_SUFFIXES = {QuantizationScheme.LOG2: "-loga", QuantizationScheme.LLOYD: "-lloyd"}


def _is_float(config: LayerQuantConfig) -> bool:
    return FLOAT_BITS in (config.weight_bits, config.activation_bits)


def _matmul_precision(op: Op, config: LayerQuantConfig) -> str:
    bits = config.activation_bits
    if _is_float(config) or bits == FLOAT_BITS:
        return FP32
    if bits > 8:
        raise KernelError(f"Op '{op.name}': no kernel multiplies two activations of {bits} bits; use 8 bits or fewer.")
    return f"w{bits}a{bits}{_ACTIVATION_SUFFIXES.get(config.activation_scheme, '')}"


def _depthwise_precision(op: Op, config: LayerQuantConfig) -> str:
    """All widths up to 8 bits run alike: products and sums are exact in the vector units' binary32."""
    precision = _precision(op, config, 1)
    if precision in (FP32, CODES_IN_FLOAT):
        return precision
    return "w8a4-lloyd" if config.activation_scheme is QuantizationScheme.LLOYD else "w8a8"


def _precision(op: Op, config: LayerQuantConfig, group_width: int) -> str:
    if _is_float(config):
        return FP32
    if 16 in (config.weight_bits, config.activation_bits):
        return CODES_IN_FLOAT
    if config.activation_scheme is QuantizationScheme.LOG2:
        raise KernelError(f"Op '{op.name}': log2 activations have a kernel in attention matmuls only.")
    bits = config.weight_bits
    scheme = config.weight_scheme
    uniform = scheme in (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)
    if uniform and not config.weight_symmetric:
        bits += 1
        if bits > 8:
            raise KernelError(f"Op '{op.name}': 8-bit weights with a zero point have no kernel; make them symmetric.")
    if scheme is QuantizationScheme.LOG2 and bits > MAX_LOG2_BITS:
        raise KernelError(f"Op '{op.name}': log2 weights of {bits} bits have no kernel; use at most {MAX_LOG2_BITS}.")
    suffix = "" if uniform else f"-{scheme.value}"
    suffix += _ACTIVATION_SUFFIXES.get(config.activation_scheme, "")
    return f"w{bits}a{config.activation_bits}{suffix}{_group_suffix(op, config, group_width)}"


def _group_suffix(op: Op, config: LayerQuantConfig, width: int) -> str:
    if config.granularity is not QuantizationGranularity.PER_GROUP or (config.group_size or 0) >= width:
        return ""
    if width % (config.group_size or 1):
        raise KernelError(f"Op '{op.name}': group_size must divide {width}, but got {config.group_size}.")
    return f"-g{config.group_size}"
