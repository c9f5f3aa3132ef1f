"""Weights packed once for the native kernels: linear layers, convolutions, depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, Values, check_array, check_rows, code_output, described, output
from evoquant.kernels.codes import Activation, ActivationCodes, Operand, activation_number
from evoquant.kernels.native import isa_number, native
from evoquant.types import ConvGeometry

POINTWISE = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
LARGEST_PACKED_BITS = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """A weight as kernels take it.

    Attributes:
        values: Integers (int8) with ``bits``, or real values (float32). Output channels first:
            (n, k), or (n, in_channels / groups, kernel_h, kernel_w).
        bits: Bits in which each integer is stored; None for real values.
        codebook: The values that integers of at most 4 bits may have, ``2**bits`` or fewer; None for the range of
            two's complement.
        scales: Real value of one unit for each output channel, (n,), or for each group of input channels,
            (n, in_channels / group_size). None for real values.
        bias: (n,) or None.
        group_size: Input channels per scale, None for one scale per output channel.
        gains: Factors of what the activation function gives, (n,), or None; not for depthwise convolutions.
    """

    values: NDArray[np.int8] | FloatArray
    bits: int | None = None
    codebook: Sequence[int] | None = None
    scales: FloatArray | None = None
    bias: FloatArray | None = None
    group_size: int | None = None
    gains: FloatArray | None = None

    @property
    def is_float(self) -> bool:
        """Whether the values are real."""
        return self.bits is None


def output_size(size: tuple[int, int], geometry: ConvGeometry) -> tuple[int, int]:
    """Height and width of what a convolution makes of an image of this height and width."""
    height, width = (
        (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for length, padding, dilation, kernel, stride in zip(
            size, geometry.padding, geometry.dilation, geometry.kernel, geometry.stride, strict=True
        )
    )
    return height, width


class _Handle(Protocol):
    """A native weight: ``Contraction`` or ``Depthwise``."""

    bytes: int
    format: str
    depth: int

    def gemm(self, *operands: object) -> float: ...

    def conv(self, *operands: object) -> float: ...

    def run(self, *operands: object) -> float: ...

    def set_gains(self, gains: FloatArray) -> None: ...


class _Spec(Protocol):
    operand: int


class _Packed:
    """A native handle with the quantizer of its input and the function it ends with."""

    __slots__ = ("_activation", "_handle", "_quantizer", "in_channels", "isa", "largest_code", "out_channels")

    def __init__(
        self, handle: _Handle, codes: ActivationCodes | None, activation: str, isa: int, channels: tuple[int, int]
    ) -> None:
        self._handle = handle
        self.in_channels, self.out_channels = channels
        self._quantizer = None if codes is None else codes.native()
        self._activation = int(activation_number(activation))
        is_integer = codes is not None and codes.operand is Operand.U8
        self.largest_code = codes.operand_max if codes is not None and is_integer else 0
        self.isa: str = native().isa_name(isa)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self._handle.bytes)

    @property
    def instructions(self) -> str | None:
        """The inner loop, such as ``u8s8/4``: operands, and how many steps are added in 16 bits.

        None for a depthwise convolution.
        """
        depth = self._handle.depth
        return f"{self._handle.format}/{depth}" if depth else self._handle.format


def _type_of(x: object) -> DTypeLike:
    """What ``x`` must be: codes if it is codes, else real values."""
    return np.uint8 if getattr(x, "dtype", None) == np.uint8 else np.float32


def _output(who: str, out: Values | None, shape: tuple[int, ...], to: ActivationCodes | None) -> Values:
    """The checked array for the result, or a new one: codes where the result is rounded to some."""
    if to is not None:
        return code_output(who, out, shape)
    return output(who, cast(FloatArray | None, out), shape)


def _run(
    call: Callable[..., float],
    x: Values,
    quantizer: object,
    activation: int,
    residual: FloatArray | None,
    out: Values,
    repeats: int,
    to: ActivationCodes | None,
) -> float:
    try:
        return float(call(x, quantizer, activation, residual, out, repeats, None if to is None else to.native()))
    except (RuntimeError, ValueError) as error:
        raise KernelError(str(error)) from error


class PackedGemm(_Packed):
    """``gains * activation(x @ weight.T + bias) + residual``; see ``pack_gemm``."""

    __slots__ = ()

    def __call__(
        self,
        x: Values,
        *,
        residual: FloatArray | None = None,
        out: Values | None = None,
        to: ActivationCodes | None = None,
    ) -> Values:
        """Quantize, multiply, scale.

        Args:
            x: (m, k), rows may be strided; uint8 for codes of the quantizer instead of real values.
            residual: (m, n) that is added at the end, or None.
            out: (m, n) for the result; None makes a new array.
            to: Rounds the result to codes, and ``out`` is uint8; None for real values.

        Returns:
            (m, n).

        Raises:
            KernelError: If an array does not fit.
        """
        out = self._checked(x, residual, out, to)
        _run(self._handle.gemm, x, self._quantizer, self._activation, residual, out, 1, to)
        return out

    def seconds(self, x: Values, out: Values, repeats: int, *, to: ActivationCodes | None = None) -> float:
        """The time of so many calls, without the interpreter."""
        return _run(self._handle.gemm, x, self._quantizer, self._activation, None, out, repeats, to)

    def _checked(
        self, x: Values, residual: FloatArray | None, out: Values | None, to: ActivationCodes | None
    ) -> Values:
        check_rows("gemm", "x", x, (None, self.in_channels), dtype=_type_of(x))
        shape = (x.shape[0], self.out_channels)
        if residual is not None:
            check_array("gemm", "residual", residual, np.float32, shape)
        return _output("gemm", out, shape, to)


class _PackedImage(_Packed):
    """What convolutions share: an NHWC image without batch axis in, another out."""

    __slots__ = ("geometry",)

    def __init__(
        self,
        handle: _Handle,
        codes: ActivationCodes | None,
        activation: str,
        isa: int,
        channels: tuple[int, int],
        geometry: ConvGeometry,
    ) -> None:
        super().__init__(handle, codes, activation, isa, channels)
        self.geometry = geometry

    def __call__(
        self,
        x: Values,
        *,
        residual: FloatArray | None = None,
        out: Values | None = None,
        to: ActivationCodes | None = None,
    ) -> Values:
        """Quantize, convolve, scale.

        Args:
            x: (height, width, in_channels); uint8 for codes of the quantizer instead of real values.
            residual: (out_height, out_width, out_channels) that is added at the end, or None.
            out: The same shape for the result; None makes a new array.
            to: Rounds the result to codes, and ``out`` is uint8; None for real values.

        Returns:
            (out_height, out_width, out_channels).

        Raises:
            KernelError: If an array does not fit.
        """
        check_array("conv", "x", x, _type_of(x), (None, None, self.in_channels))
        size = output_size(x.shape[:2], self.geometry)
        if min(size) < 1:
            raise KernelError(f"conv: the padded image of {x.shape[:2]} is smaller than kernel {self.geometry.kernel}.")
        shape = (*size, self.out_channels)
        if residual is not None:
            check_array("conv", "residual", residual, np.float32, shape)
        out = _output("conv", out, shape, to)
        _run(self._call, x, self._quantizer, self._activation, residual, out, 1, to)
        return out

    def seconds(self, x: Values, out: Values, repeats: int, *, to: ActivationCodes | None = None) -> float:
        """The time of so many calls, without the interpreter."""
        return _run(self._call, x, self._quantizer, self._activation, None, out, repeats, to)

    @property
    def _call(self) -> Callable[..., float]:
        raise NotImplementedError


class PackedConv(_PackedImage):
    """A convolution, grouped or not; see ``pack_conv``."""

    __slots__ = ()

    @property
    def _call(self) -> Callable[..., float]:
        return self._handle.conv


class PackedDepthwise(_PackedImage):
    """A depthwise convolution; see ``pack_depthwise``."""

    __slots__ = ()

    @property
    def instructions(self) -> None:
        """Vectors over channels: no format of a contraction."""

    @property
    def _call(self) -> Callable[..., float]:
        return self._handle.run


def pack_gemm(
    weights: Weights, codes: ActivationCodes | None = None, *, activation: str = "identity", isa: str | None = None
) -> PackedGemm:
    """Pack the weight (n, k) of a linear layer or of a 1x1 convolution.

    Args:
        weights: Integers or real values.
        codes: How the input is quantized; None leaves it real. Real weights, and codes of more than 8 bits, are
            multiplied in floating point.
        activation: The function at the end; see ``Activation``.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Raises:
        KernelError: If the operands do not fit each other.
    """
    if getattr(weights.values, "ndim", None) != 2:
        raise KernelError(f"pack_gemm: expected weights (n, k), but got {described(weights.values)}.")
    n, k = weights.values.shape
    handle, number = _contraction(weights, weights.values.reshape(n, 1, 1, k), codes, POINTWISE, isa)
    return PackedGemm(handle, codes, activation, number, (k, n))


def pack_conv(
    weights: Weights,
    geometry: ConvGeometry,
    codes: ActivationCodes | None = None,
    *,
    activation: str = "identity",
    isa: str | None = None,
) -> PackedConv:
    """Pack the weight (n, in_channels / groups, kernel_h, kernel_w) of a convolution; see ``pack_gemm``."""
    _check_conv_weights("pack_conv", weights, geometry)
    values = np.ascontiguousarray(weights.values.transpose(0, 2, 3, 1))
    handle, number = _contraction(weights, values, codes, geometry, isa)
    channels = (values.shape[3] * geometry.groups, values.shape[0])
    return PackedConv(handle, codes, activation, number, channels, geometry)


def pack_depthwise(
    weights: Weights,
    geometry: ConvGeometry,
    codes: ActivationCodes | None = None,
    *,
    activation: str = "identity",
    isa: str | None = None,
) -> PackedDepthwise:
    """Pack the weight (channels, 1, kernel_h, kernel_w) of a depthwise convolution; see ``pack_gemm``."""
    _check_conv_weights("pack_depthwise", weights, geometry)
    channels, width = weights.values.shape[:2]
    if width != 1 or geometry.groups != channels:
        raise KernelError(
            f"pack_depthwise: expected weights (channels, 1, kernel_h, kernel_w) in as many groups, "
            f"but got {described(weights.values)} in {geometry.groups} groups."
        )
    if weights.group_size is not None or weights.gains is not None:
        raise KernelError("pack_depthwise: a depthwise convolution has one scale per channel, and no gains.")
    values = np.ascontiguousarray(weights.values[:, 0].transpose(1, 2, 0))
    number = isa_number(isa)
    spec = _spec(weights, codes, geometry, channels, channels)
    handle = _made(native().Depthwise, number, spec, weights, values)
    return PackedDepthwise(handle, codes, activation, number, (channels, channels), geometry)


def _check_conv_weights(who: str, weights: Weights, geometry: ConvGeometry) -> None:
    values = weights.values
    if getattr(values, "ndim", None) != 4 or values.shape[2:] != geometry.kernel:
        raise KernelError(
            f"{who}: expected weights (n, in_channels / groups, {geometry.kernel[0]}, {geometry.kernel[1]}), "
            f"but got {described(values)}."
        )


def _contraction(
    weights: Weights, values: NDArray[Any], codes: ActivationCodes | None, geometry: ConvGeometry, isa: str | None
) -> tuple[_Handle, int]:
    number = isa_number(isa)
    spec = _spec(weights, codes, geometry, values.shape[0], values.shape[3] * geometry.groups)
    handle = _made(native().Contraction, number, spec, weights, values)
    if weights.gains is not None:
        check_array("weights", "gains", weights.gains, np.float32, (values.shape[0],))
        handle.set_gains(weights.gains)
    return handle, number


def _spec(
    weights: Weights, codes: ActivationCodes | None, geometry: ConvGeometry, out_channels: int, in_channels: int
) -> _Spec:
    if not weights.is_float and codes is None:
        raise KernelError("Integer weights need activation codes; pass real weights to multiply real inputs.")
    if weights.bits is not None and not 1 <= weights.bits <= LARGEST_PACKED_BITS:
        raise KernelError(f"Weights are packed in 1 to 8 bits, but got {weights.bits}.")
    if weights.codebook is not None and (weights.bits or 8) > 4:
        raise KernelError(f"A codebook goes with weights of at most 4 bits, but got {weights.bits}.")
    flat = (*geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups)
    operand = Operand.F32 if codes is None else Operand.CODES_F32 if weights.is_float else codes.operand
    spec: _Spec = native().Spec(
        (out_channels, in_channels, *flat), int(operand), 0 if codes is None else codes.operand_max,
        weights.bits or 0, _whole_codebook(weights), weights.group_size or 0,
    )  # fmt: skip
    return spec


def _whole_codebook(weights: Weights) -> list[int] | None:
    if weights.codebook is None:
        return None
    values = [int(value) for value in weights.codebook]
    return values + values[-1:] * ((1 << (weights.bits or 0)) - len(values))


def _made(kind: Callable[..., _Handle], isa: int, spec: _Spec, weights: Weights, values: NDArray[Any]) -> _Handle:
    dtype = np.float32 if weights.is_float else np.int8
    values = np.ascontiguousarray(values)
    check_array("weights", "values", values, dtype)
    for name in ("scales", "bias"):
        if getattr(weights, name) is not None:
            check_array("weights", name, getattr(weights, name), np.float32)
    integers, reals = (None, values) if weights.is_float else (values, None)
    if not weights.is_float and spec.operand == Operand.CODES_F32:
        integers, reals = None, values.astype(np.float32)
    try:
        return kind(isa, spec, integers, reals, weights.scales, weights.bias)
    except (RuntimeError, ValueError) as error:
        raise KernelError(str(error)) from error


__all__ = [
    "Activation", "PackedConv", "PackedDepthwise", "PackedGemm", "Weights", "output_size", "pack_conv",
    "pack_depthwise", "pack_gemm",
]  # fmt: skip
