"""The weight of an operation as it is stored, and as kernels take it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from evoquant.errors import ModelError
from evoquant.kernels import ActivationCodes, Weights
from evoquant.kernels.arrays import FloatArray
from evoquant.quant import QuantParams, code_range, dequantize, pack, quantize, unpack
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme
from evoquant.types.precision import FLOAT_BITS

LARGEST_INTEGER = 127
LARGEST_CODEBOOK_BITS = 4
WHOLE_BITS = 8


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """Packed codes with what they mean, or real values.

    Attributes:
        shape: Shape of the weight, output channels first.
        config: The precision; only its weight side is read.
        tensors: What is stored. ``weight``: packed codes, uint8 (rows, bytes), or float32 of ``shape``. ``scale``:
            float32, or the exponents as int8 where scales are powers of two. ``zero_point``: only where weights have
            one, int8 or int16.
    """

    shape: tuple[int, ...]
    config: LayerQuantConfig
    tensors: dict[str, Tensor]

    @classmethod
    def quantized(cls, weight: Tensor, config: LayerQuantConfig, params: QuantParams | None) -> StoredWeight:
        """Pack the codes of a weight that lies on the grid of its parameters; without parameters it stays float.

        Raises:
            ModelError: If a value lies beside the grid.
        """
        shape = tuple(weight.shape)
        if params is None:
            return cls(shape, config, {"weight": weight.detach().contiguous().clone()})
        codes = quantize(weight, params)
        if not torch.equal(dequantize(codes, params), weight):
            raise ModelError(f"A weight of {config.label} has values beside the grid of its scales.")
        codes = codes.reshape(shape[0], -1)
        tensors = {"weight": pack(codes, bits=config.weight_bits), "scale": params.scale.clone()}
        if config.weight_scheme is QuantizationScheme.POWER_OF_TWO:
            tensors["scale"] = params.scale.log2().round().to(torch.int8)
        if not config.weight_symmetric:
            tensors["zero_point"] = params.zero_point.to(
                torch.int8 if config.weight_bits <= WHOLE_BITS else torch.int16
            )
        return cls(shape, config, tensors)

    @property
    def is_float(self) -> bool:
        """Whether real values are stored."""
        return self.config.weight_bits == FLOAT_BITS

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def params(self) -> QuantParams:
        """What the codes mean.

        Raises:
            ModelError: If the stored scales do not fit the weight.
        """
        config = self.config
        scale = self.tensors["scale"]
        scale = torch.exp2(scale.float()) if scale.dtype is torch.int8 else scale
        zero_point = self.tensors.get("zero_point")
        zeros = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point.to(torch.int32)
        low, high = code_range(
            config.weight_scheme, config.weight_bits, is_symmetric=config.weight_symmetric, is_signed=True
        )
        axis = 0 if config.granularity is QuantizationGranularity.PER_CHANNEL else None
        if axis == 0 and scale.shape != self.shape[:1]:
            raise ModelError(
                f"Expected {self.shape[0]} scales for a weight of {config.label}, but got {scale.numel()}."
            )
        try:
            return QuantParams(
                config.weight_scheme, config.weight_bits, scale, zeros, low, high, axis, config.group_size
            )
        except ValueError as error:
            raise ModelError(f"The stored scales do not fit a weight of {config.label}: {error}") from error

    def codes(self) -> Tensor:
        """The codes, int32 in the shape of the weight."""
        low = self.params().q_min
        columns = prod(self.shape[1:])
        packed = self.tensors["weight"]
        return unpack(packed, bits=self.config.weight_bits, columns=columns, is_signed=low < 0).reshape(self.shape)

    def real(self) -> FloatArray:
        """The values that the codes stand for, float32."""
        value = self.tensors["weight"] if self.is_float else dequantize(self.codes(), self.params())
        return np.ascontiguousarray(value.numpy(), np.float32)

    def for_kernel(self, bias: FloatArray | None, activations: ActivationCodes | None) -> tuple[Weights, bool]:
        """The weight as kernels take it, and whether its codes are multiplied as integers.

        Integers are multiplied where the input is quantized to at most 8 bits and the weight, without its zero point,
        fits 8 bits and a scale that kernels have; anything else is multiplied in floating point.
        """
        is_low = activations is not None and activations.q_max - activations.q_min <= 2**WHOLE_BITS
        integers = None if self.is_float or not is_low else self._integers()
        if integers is None:
            return Weights(self.real(), bias=bias), False
        return self._as_weights(*integers, bias), True

    def _integers(self) -> tuple[Tensor, int, list[int] | None, float] | None:
        """Integers, their bits, their codebook, and the factor by which they exceed the units of the scale."""
        config = self.config
        params = self.params()
        if config.weight_bits > WHOLE_BITS or self._kernel_groups() is None:
            return None
        codes = self.codes()
        if params.codebook is None:
            bits = config.weight_bits + (not config.weight_symmetric)
            groups = params.scale.shape[1] if params.group_size else 1
            zero_point = (
                params.zero_point.expand(codes.shape[0] * groups) if params.zero_point.ndim == 0 else params.zero_point
            )
            integers = codes.reshape(codes.shape[0], groups, -1) - zero_point.reshape(codes.shape[0], groups, 1)
            fits = bits <= WHOLE_BITS and int(integers.abs().max()) <= LARGEST_INTEGER
            return (integers.reshape(codes.shape), bits, None, 1.0) if fits else None
        is_whole = bool((params.codebook == params.codebook.round()).all())
        factor = 1.0 if is_whole else float(1.0 / params.codebook.abs()[params.codebook != 0].min())
        book = (params.codebook * factor).round().to(torch.int32)
        values = book[(codes - params.q_min).long()]
        return values, config.weight_bits, book.tolist(), factor

    def _kernel_groups(self) -> tuple[int, int | None] | None:
        """Scales per row and input channels that share one; None where scales change inside of a channel."""
        size, columns = self.config.group_size, prod(self.shape[1:])
        if size is None or size == columns:
            return 1, None
        per_channel = prod(self.shape[2:])
        if size % per_channel or self.shape[1] == 1:
            return None
        return columns // size, size // per_channel

    def _as_weights(
        self, integers: Tensor, bits: int, codebook: list[int] | None, factor: float, bias: FloatArray | None
    ) -> Weights:
        groups = self._kernel_groups()
        assert groups is not None, "checked with the integers"
        count, channels = groups
        scale = (self.params().scale / factor).reshape(-1)
        rows = self.shape[0]
        shape = (rows,) if channels is None else (rows, count)
        scales = np.ascontiguousarray(scale.expand(rows * count).reshape(shape).numpy(), np.float32)
        values = np.ascontiguousarray(integers.numpy().astype(np.int8))
        return Weights(values, bits, codebook, scales, bias, channels)
