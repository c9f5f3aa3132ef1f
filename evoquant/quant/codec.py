"""Real values to integer codes and back, and both at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evoquant.errors import PrecisionError
from evoquant.quant.lattice import Lattice
from evoquant.quant.params import QuantParams, lattice_of
from evoquant.types import QuantizationScheme

_TABLES = (QuantizationScheme.NORMAL, QuantizationScheme.LLOYD)

CACHE_BLOCK = 131_072
"""Values that a pass handles at a time and per thread: 512 KiB, which stay in the second-level cache."""


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Integer codes of real values.

    Uniform codes are ``clamp(round(x * (1 / scale)) + zero_point, q_min, q_max)``, ties to even, all in float32.

    Args:
        x: Float32 values of any shape that fits the layout of the scales.
        params: How to quantize.

    Returns:
        Int32 codes in [q_min, q_max], same shape.

    Raises:
        PrecisionError: If the shape does not fit the layout.
    """
    view = _Layout.of(x, params)
    points = view.lattice.nearest_(view.values * view.inverse_scale)
    if params.scheme is QuantizationScheme.LOG2:
        octaves = points.abs().log2_().mul_(params.levels_per_octave).round_().add_(params.q_max)
        codes = torch.where(points == 0, 0, octaves).mul_(points.sign())
    elif params.scheme in _TABLES and (levels := params.codebook) is not None:
        codes = torch.bucketize(points, levels) + params.q_min
    elif params.scheme is QuantizationScheme.BINARY:
        codes = points.clamp_(min=0.0)
    else:
        codes = points.add_(view.zero_point)
    return codes.to(torch.int32).reshape(x.shape)


def dequantize(codes: Tensor, params: QuantParams) -> Tensor:
    """Real values of integer codes.

    Args:
        codes: Integers in [q_min, q_max]; any integer type.
        params: How they were quantized.

    Returns:
        Float32, same shape.

    Raises:
        PrecisionError: If a code lies outside the range, or the shape does not fit the layout.
    """
    if codes.numel() and (int(codes.min()) < params.q_min or int(codes.max()) > params.q_max):
        raise PrecisionError(
            f"Codes must lie in [{params.q_min}, {params.q_max}], but got {int(codes.min())} to {int(codes.max())}."
        )
    view = _Layout.of(codes, params)
    codebook = params.codebook
    if codebook is None:
        points = (view.values - view.zero_point).float()
    else:
        points = codebook[(view.values - params.q_min).long()]
    return points.mul_(view.scale).reshape(codes.shape)


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """``dequantize(quantize(x))``, exactly and without the integers; a new tensor.

    Raises:
        PrecisionError: If the shape does not fit the layout.
    """
    view = _Layout.of(x, params)
    points = view.lattice.nearest_(view.values * view.inverse_scale)
    return points.mul_(view.scale).reshape(x.shape)


class FakeQuant:
    """``fake_quantize`` of many tensors by the same parameters, as fast as torch does it on a CPU.

    With one scale, a value costs a few passes that are each as cheap as a copy, in blocks that stay in the cache. The
    result equals ``dequantize(quantize(x))``. Not differentiable: call it under ``torch.no_grad``.

    Args:
        params: How to quantize.
    """

    __slots__ = ("_inverse_scale", "_lattice", "_scale", "params")

    def __init__(self, params: QuantParams) -> None:
        self.params = params
        if params.scale.ndim == 0:
            self._scale = float(params.scale)
            self._inverse_scale = float(params.scale.reciprocal())
            self._lattice = lattice_of(params)

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Quantize and dequantize.

        Args:
            x: Float32 values.
            out: Where the result goes, same shape; may be ``x`` itself. None makes a new tensor.

        Returns:
            ``out``, or the new tensor.

        Raises:
            PrecisionError: If the shape does not fit the layout of the scales.
        """
        if self.params.scale.ndim:
            result = fake_quantize(x, self.params)
            return result if out is None else out.copy_(result)
        block = CACHE_BLOCK * torch.get_num_threads()
        if x.numel() <= 2 * block or not x.is_contiguous() or not (out is None or out.is_contiguous()):
            return self._apply(x, out)
        out = torch.empty_like(x) if out is None else out
        for source, target in zip(torch.split(x.view(-1), block), torch.split(out.view(-1), block), strict=True):
            self._apply(source, target)
        return out

    def _apply(self, x: Tensor, out: Tensor | None) -> Tensor:
        points = torch.mul(x, self._inverse_scale, out=out)
        return self._lattice.nearest_(points).mul_(self._scale)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A tensor seen so that its scales broadcast to it."""

    values: Tensor
    scale: Tensor
    inverse_scale: Tensor
    zero_point: Tensor
    lattice: Lattice

    @classmethod
    def of(cls, values: Tensor, params: QuantParams) -> _Layout:
        shape: tuple[int, ...] = ()
        if params.group_size is not None:
            rows, groups = params.scale.shape
            if values.numel() != rows * groups * params.group_size or values.shape[0] != rows:
                raise PrecisionError(
                    f"Expected {rows} rows of {groups} groups of {params.group_size} values, "
                    f"but got shape {tuple(values.shape)}."
                )
            values, shape = values.reshape(rows, groups, params.group_size), (rows, groups, 1)
        elif params.axis is not None:
            shape = _channel_shape(values, params.axis, params.scale.shape[0])
        scale, zero_point = params.scale.view(shape), params.zero_point.view(shape)
        return cls(values, scale, scale.reciprocal(), zero_point, lattice_of(params, zero_point=zero_point))


def _channel_shape(values: Tensor, axis: int, channels: int) -> tuple[int, ...]:
    if not -values.ndim <= axis < values.ndim or values.shape[axis] != channels:
        raise PrecisionError(f"Expected {channels} channels on axis {axis}, but got shape {tuple(values.shape)}.")
    shape = [1] * values.ndim
    shape[axis] = channels
    return tuple(shape)
