"""Rounding of weights one input at a time, the error of each made good by the inputs that are not rounded yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoquant.calibrate.definite import damped_factor
from evoquant.quant import QuantParams
from evoquant.quant.lattice import StepLattice
from evoquant.quant.params import lattice_of

BLOCK = 64
"""Inputs between two updates of all remaining ones."""


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """The points that each element of a weight may take, for rounding a column at a time.

    Attributes:
        params: How the weight is quantized.
        scale: (groups, rows, columns) or broadcasting to it.
        shift: The zero points, likewise.
    """

    params: QuantParams
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, rows: Tensor, params: QuantParams) -> WeightGrid:
        """The grid of a weight seen as (groups, rows, columns)."""
        groups, count, _ = rows.shape
        scale, shift = params.scale, params.zero_point
        if params.group_size is not None:
            scale = scale.repeat_interleave(params.group_size, dim=1)
            shift = shift.repeat_interleave(params.group_size, dim=1)
        shape = (groups, count, -1) if params.axis is not None or params.group_size is not None else (1, 1, 1)
        scale, shift = scale.reshape(shape), shift.reshape(shape)
        return cls(params, scale.expand(rows.shape), shift.expand(rows.shape))

    def nearest(self, values: Tensor, columns: slice) -> Tensor:
        """The nearest points to ``values``, (groups, rows, columns of the slice)."""
        scale, shift = self.scale[:, :, columns], self.shift[:, :, columns]
        points = values * scale.reciprocal()
        if self.params.codebook is None and not self.params.is_symmetric:
            lattice = StepLattice((self.params.q_min - shift).float(), (self.params.q_max - shift).float())
            return lattice.nearest_(points).mul_(scale)
        return lattice_of(self.params).nearest_(points).mul_(scale)

    def ordered(self, order: Tensor) -> WeightGrid:
        """The grid with its columns in another order, (groups, columns)."""
        index = order[:, None, :].expand(self.scale.shape)
        return WeightGrid(self.params, self.scale.gather(2, index), self.shift.gather(2, index))

    def repeated(self, times: int) -> WeightGrid:
        """The grid of so many copies of the weight, as more groups."""
        return WeightGrid(self.params, self.scale.repeat(times, 1, 1), self.shift.repeat(times, 1, 1))


def gptq(rows: Tensor, params: QuantParams, hessian: Tensor, *, dampings: Sequence[float] = (0.01,)) -> list[Tensor]:
    """Round a weight so that the output changes little, not each element.

    Inputs are rounded in the order of falling power. The error that rounding one makes is spread over those that are
    left, in the least-squares sense. With a diagonal ``hessian`` this is rounding to the nearest.

    Args:
        rows: The weight as (groups, rows, columns), float32.
        params: Scheme, scales and zero points; they do not change.
        hessian: (groups, columns, columns): mean of ``x x^T`` of the inputs, or their covariance.
        dampings: Regularizations, each added to the diagonal as a share of its mean.

    Returns:
        For each damping the quantized and dequantized weight, same shape: every value lies on the grid of ``params``.

    References:
        E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ", ICLR 2023, https://arxiv.org/abs/2210.17323.
    """
    groups, _, width = rows.shape
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    ordered = _reordered(hessian, order)
    factor = torch.cat([_inverse_factor(ordered, damping) for damping in dampings]).to(rows.dtype)
    index = order[:, None, :].expand(rows.shape)
    left = rows.gather(2, index).repeat(len(dampings), 1, 1)
    grid = WeightGrid.of(rows, params).ordered(order).repeated(len(dampings))
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = _round_block(left[:, :, start:stop], grid, start, factor[:, start:stop, start:stop])
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return [torch.empty_like(rows).scatter_(2, index, part) for part in torch.split(left, groups)]


def _round_block(left: Tensor, grid: WeightGrid, start: int, factor: Tensor) -> Tensor:
    """Round the columns of a block in place; returns the errors that the columns after it make good."""
    errors = torch.empty_like(left)
    for column in range(left.shape[2]):
        value = left[:, :, column].clone()
        rounded = grid.nearest(value[:, :, None], slice(start + column, start + column + 1))[:, :, 0]
        errors[:, :, column] = (value - rounded) / factor[:, None, column, column]
        left[:, :, column] = rounded
        left[:, :, column + 1 :] -= errors[:, :, column, None] * factor[:, None, column, column + 1 :]
    return errors


def _reordered(hessian: Tensor, order: Tensor) -> Tensor:
    by_row = hessian.gather(1, order[:, :, None].expand(hessian.shape))
    return by_row.gather(2, order[:, None, :].expand(hessian.shape))


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse, in double precision."""
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(damped_factor(hessian, damping)), upper=True)
    return factor
