"""Quantizers of activations in the native kernels: the same values as those of torch, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from evoquant import kernels
from evoquant.kernels import ActivationCodes
from evoquant.kernels.tensors import fake_quantize
from evoquant.quant import FakeQuant, QuantParams
from evoquant.types import QuantizationScheme


def fake_quantizer(params: QuantParams) -> FakeQuant:
    """The fastest quantizer that computes ``fake_quantize`` with these parameters."""
    is_simple = params.scale.ndim == 0 and params.levels_per_octave == 1
    return NativeFakeQuant(params) if is_simple and kernels.info().available else FakeQuant(params)


class NativeFakeQuant(FakeQuant):
    """``FakeQuant`` with one scale, in the native kernels and in one thread.

    Args:
        params: How to quantize.
    """

    __slots__ = ("_codes",)

    def __init__(self, params: QuantParams) -> None:
        super().__init__(params)
        self._codes = activation_codes(params).native()

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Quantize and dequantize; tensors of any strides that leave no gaps are taken as they lie in memory."""
        target = torch.empty_like(x) if out is None else out
        if not _is_dense(x) or target.stride() != x.stride() or x.dtype != torch.float32:
            return super().__call__(x, out=out)
        fake_quantize(_in_memory(x).numpy(), self._codes, _in_memory(target).numpy())
        return target


def _is_dense(x: Tensor) -> bool:
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.numel() > 0 and span == x.numel()


def _in_memory(x: Tensor) -> Tensor:
    return x.detach().as_strided((x.numel(),), (1,))


def activation_codes(params: QuantParams) -> ActivationCodes:
    """The quantizer of a kernel's input."""
    scale = float(params.scale)
    if params.scheme is QuantizationScheme.LOG2:
        return ActivationCodes.log2(scale, bits=params.bits)
    if params.scheme is QuantizationScheme.LLOYD:
        return ActivationCodes.uneven(scale, params.levels)
    return ActivationCodes(scale, int(params.zero_point), params.q_min, params.q_max)
