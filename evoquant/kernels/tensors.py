"""Operations on whole tensors: conversions between real values and codes, and what stays in floating point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, check_array, output
from evoquant.kernels.codes import ActivationCodes, Operand, activation_number
from evoquant.kernels.native import default_isa, native


def quantize(x: FloatArray, codes: ActivationCodes) -> NDArray[np.uint8]:
    """Codes that start at zero, in the shape of ``x``.

    Raises:
        KernelError: If ``x`` is not contiguous float32, or the codes do not fit a byte.
    """
    check_array("quantize", "x", x, np.float32)
    if codes.operand is not Operand.U8:
        raise KernelError(f"quantize: expected codes of at most 8 bits, but got {codes}.")
    out = np.empty(x.shape, np.uint8)
    native().quantize_u8(default_isa(), x, codes.native(), out, 1)
    return out


def fake_quantize(x: FloatArray, codes: object, out: FloatArray) -> None:
    """Quantize and dequantize, in one thread: the real values that kernels compute with.

    Args:
        x: Values; what is NaN stays so.
        codes: ``ActivationCodes.native()`` of the quantizer.
        out: Where the result goes, as many values; may be ``x``.

    Raises:
        KernelError: If an array is not contiguous float32.
    """
    check_array("fake_quantize", "x", x, np.float32)
    check_array("fake_quantize", "out", out, np.float32)
    native().fake_quantize(default_isa(), x, codes, out, 1)


def dequantize(codes: NDArray[np.uint8], quantizer: ActivationCodes) -> FloatArray:
    """Real values of codes that start at zero.

    Raises:
        KernelError: If ``codes`` is not contiguous uint8.
    """
    check_array("dequantize", "codes", codes, np.uint8)
    out = np.empty(codes.shape, np.float32)
    native().dequantize_u8(default_isa(), codes, quantizer.native(), out, 1)
    return out


def requantize(
    accumulators: NDArray[np.int32],
    to: ActivationCodes,
    *,
    shift: NDArray[np.int8],
    multiplier: NDArray[np.int32] | None = None,
    bias: NDArray[np.int32] | None = None,
    table: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Codes of integer accumulators by fixed-point arithmetic, then an optional table of 256 codes.

    With a multiplier in [2**30, 2**31): a saturating rounding doubling high multiplication, then a rounding shift
    to the right by ``-shift``. Without one: ``(accumulator + 2**(shift - 1)) >> shift``.

    Args:
        accumulators: (rows, channels).
        to: The codes of the result; only its zero point and range are used.
        shift: (channels,).
        multiplier: (channels,) or None for pure shifts.
        bias: (channels,) added before, or None.
        table: 256 codes that replace the result, such as an activation function; None for none.

    Raises:
        KernelError: If an operand does not fit.

    References:
        B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        https://arxiv.org/abs/1712.05877, section 2.2.
    """
    check_array("requantize", "accumulators", accumulators, np.int32, (None, None))
    channels = accumulators.shape[1]
    check_array("requantize", "shift", shift, np.int8, (channels,))
    for name, array in (("multiplier", multiplier), ("bias", bias)):
        if array is not None:
            check_array("requantize", name, array, np.int32, (channels,))
    if table is not None:
        check_array("requantize", "table", table, np.uint8, (256,))
    if multiplier is not None and np.abs(shift.astype(np.int32)).max(initial=0) > 31:
        raise KernelError("requantize: shifts must lie in [-31, 31].")
    out = np.empty(accumulators.shape, np.uint8)
    native().requantize(default_isa(), accumulators, bias, multiplier, shift, to.native(), table, out)
    return out


def activate(x: FloatArray, kind: str, *, out: FloatArray | None = None) -> FloatArray:
    """An activation function of each value: ``relu``, ``silu``, ``gelu``, ``hard_swish``, ``sigmoid``, ...

    Raises:
        KernelError: If there is no such function or an array does not fit.
    """
    check_array("activate", "x", x, np.float32)
    out = output("activate", out, x.shape)
    native().activate(default_isa(), int(activation_number(kind)), x, out, 1)
    return out


def add(a: FloatArray, b: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """The sum of two arrays of equal shape.

    Raises:
        KernelError: If an array does not fit.
    """
    return _binary("add", a, b, out)


def mul(a: FloatArray, b: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """The product of two arrays of equal shape.

    Raises:
        KernelError: If an array does not fit.
    """
    return _binary("mul", a, b, out)


def scale_channels(x: FloatArray, scale: FloatArray, shift: FloatArray | None = None) -> FloatArray:
    """``x * scale + shift`` with one scale per column of (rows, channels).

    Raises:
        KernelError: If an array does not fit.
    """
    check_array("scale_channels", "x", x, np.float32, (None, None))
    check_array("scale_channels", "scale", scale, np.float32, x.shape[1:])
    if shift is not None:
        check_array("scale_channels", "shift", shift, np.float32, x.shape[1:])
    out = np.empty(x.shape, np.float32)
    native().scale_rows(default_isa(), x, scale, shift, out)
    return out


def softmax(x: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """The softmax of each row of (rows, columns).

    Raises:
        KernelError: If an array does not fit.
    """
    check_array("softmax", "x", x, np.float32, (None, None))
    out = output("softmax", out, x.shape)
    _run(lambda isa: native().softmax(isa, x, out, 1))
    return out


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, *, epsilon: float = 1e-5) -> FloatArray:
    """The normalisation of each row of (rows, columns) to mean 0 and variance 1, times weight, plus bias.

    Raises:
        KernelError: If an array does not fit.
    """
    return _norm("layer_norm", x, weight, bias, epsilon)


def group_norm(
    x: FloatArray, weight: FloatArray, bias: FloatArray, *, groups: int = 1, epsilon: float = 1e-5
) -> FloatArray:
    """Each group of neighbouring columns of (rows, columns) to mean 0 and variance 1, times weight, plus bias.

    Weight and bias have a value for each column.

    Raises:
        KernelError: If an array does not fit, or the groups do not divide the columns.
    """
    return _norm("group_norm", x, weight, bias, epsilon, groups)


def mean_rows(x: FloatArray) -> FloatArray:
    """The mean over the rows of (rows, channels): global average pooling of an NHWC image.

    Raises:
        KernelError: If the array does not fit or has no row.
    """
    check_array("mean_rows", "x", x, np.float32, (None, None))
    out = np.empty(x.shape[1], np.float32)
    _run(lambda isa: native().mean_rows(isa, x, out, 1))
    return out


def max_pool(x: FloatArray, *, kernel: int, stride: int, padding: int = 0) -> FloatArray:
    """The maximum over square windows of an image (height, width, channels).

    Raises:
        KernelError: If the array or the window does not fit.
    """
    check_array("max_pool", "x", x, np.float32, (None, None, None))
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in x.shape[:2])
    if min(height, width) < 1:
        raise KernelError(f"max_pool: an image of {x.shape[:2]} is smaller than a window of {kernel}.")
    out = np.empty((height, width, x.shape[2]), np.float32)
    _run(lambda isa: native().max_pool(isa, x, kernel, stride, padding, out, 1))
    return out


def pack_bits(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Indices in [0, 2**bits) as planes of 4, 2 and 1 bit: 256 values in ``32 * bits`` bytes.

    Raises:
        KernelError: If an index does not fit; the message names the first.
    """
    check_array("pack_bits", "indices", indices, np.uint8, (None,))
    if not 1 <= bits <= 8:
        raise KernelError(f"pack_bits: bits must lie in [1, 8], but got {bits}.")
    packed = np.empty(native().packed_bytes(indices.size, bits), np.uint8)
    try:
        native().pack_bits(indices, bits, packed)
    except RuntimeError as error:
        raise KernelError(str(error)) from error
    return packed


def unpack_bits(packed: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """The first ``count`` indices of what ``pack_bits`` made.

    Raises:
        KernelError: If ``packed`` has another size.
    """
    if not 1 <= bits <= 8:
        raise KernelError(f"unpack_bits: bits must lie in [1, 8], but got {bits}.")
    check_array("unpack_bits", "packed", packed, np.uint8, (native().packed_bytes(count, bits),))
    indices = np.empty(count, np.uint8)
    native().unpack_bits(packed, bits, indices)
    return indices


def _binary(name: str, a: FloatArray, b: FloatArray, out: FloatArray | None) -> FloatArray:
    check_array(name, "a", a, np.float32)
    check_array(name, "b", b, np.float32, a.shape)
    out = output(name, out, a.shape)
    getattr(native(), name)(default_isa(), a, b, out, 1)
    return out


def _norm(name: str, x: FloatArray, weight: FloatArray, bias: FloatArray, epsilon: float, *groups: int) -> FloatArray:
    check_array(name, "x", x, np.float32, (None, None))
    check_array(name, "weight", weight, np.float32, x.shape[1:])
    check_array(name, "bias", bias, np.float32, x.shape[1:])
    out = np.empty(x.shape, np.float32)
    _run(lambda isa: getattr(native(), name)(isa, x, *groups, weight, bias, epsilon, out, 1))
    return out


def _run(call: Callable[[int], object]) -> None:
    try:
        call(default_isa())
    except RuntimeError as error:
        raise KernelError(str(error)) from error
