"""Rounding of weights one input at a time, the error of each made good by the inputs that are not rounded yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoquant import kernels
from evoquant.calibrate.definite import damped_factor
from evoquant.kernels.arrays import FloatArray
from evoquant.kernels.rounding import RoundingPoints, round_compensated
from evoquant.quant import QuantParams
from evoquant.quant.lattice import Lattice, StepLattice
from evoquant.quant.params import lattice_of

BLOCK = 64
"""Inputs between two updates of all remaining ones."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightGrid:
    """The points that each element of a weight may take, for rounding a column at a time.

    Attributes:
        scale: (groups, rows, columns) or broadcasting to it.
        inverse: Of the scale.
        bounds: Smallest and greatest multiple of the scale, likewise; None where ``lattice`` holds for all elements.
        lattice: The points in units of the scale, the same for all elements.
        table: The same as numbers in ascending order; None where they are integers.
    """

    scale: Tensor
    inverse: Tensor
    bounds: tuple[Tensor, Tensor] | None
    lattice: Lattice | None
    table: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, params: QuantParams) -> WeightGrid:
        """The grid of a weight seen as (groups, rows, columns)."""
        groups, count, _ = rows.shape
        scale, shift = params.scale, params.zero_point
        if params.group_size is not None:
            scale = scale.repeat_interleave(params.group_size, dim=1)
            shift = shift.repeat_interleave(params.group_size, dim=1)
        shape = (groups, count, -1) if params.axis is not None or params.group_size is not None else (1, 1, 1)
        scale = scale.reshape(shape).expand(rows.shape)
        if params.codebook is not None or params.is_symmetric:
            return cls(scale, scale.reciprocal(), None, lattice_of(params), params.codebook)
        shift = shift.reshape(shape).expand(rows.shape)
        return cls(
            scale, scale.reciprocal(), ((params.q_min - shift).float(), (params.q_max - shift).float()), None, None
        )

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """The nearest points to ``values``, (groups, rows), of one column."""
        points = values * self.inverse[:, :, column]
        if self.bounds is not None:
            points.round_().clamp_(self.bounds[0][:, :, column], self.bounds[1][:, :, column])
        elif self.lattice is not None:
            points = self.lattice.nearest_(points)
        return points.mul_(self.scale[:, :, column])

    def ordered(self, order: Tensor) -> WeightGrid:
        """The grid with its columns in another order, (groups, columns)."""
        index = order[:, None, :].expand(self.scale.shape)
        return self._changed(lambda values: values.gather(2, index))

    def repeated(self, times: int) -> WeightGrid:
        """The grid of so many copies of the weight, as more groups."""
        return self._changed(lambda values: values.repeat(times, 1, 1))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> WeightGrid:
        bounds = None if self.bounds is None else (change(self.bounds[0]), change(self.bounds[1]))
        return WeightGrid(change(self.scale), change(self.inverse), bounds, self.lattice, self.table)

    def native(self) -> RoundingPoints:
        """The same for the native loops."""
        scale = array_of(self.scale)
        if self.bounds is not None:
            return RoundingPoints(scale, bounds=(array_of(self.bounds[0]), array_of(self.bounds[1])))
        if isinstance(self.lattice, StepLattice):
            return RoundingPoints(scale, bounds=(float(self.lattice.lower), float(self.lattice.upper)))
        assert self.table is not None, "points that are no integers are in a table"
        return RoundingPoints(scale, array_of(self.table))


def array_of(values: Tensor) -> FloatArray:
    """The same memory if it is contiguous, else a copy."""
    return values.detach().contiguous().numpy()


@dataclass(frozen=True, slots=True, eq=False)
class ErrorSpread:
    """How the error of one rounded input is made good by those that are not rounded yet: all of GPTQ but the weight.

    Attributes:
        order: Inputs by falling power, (groups, columns).
        factors: Upper Cholesky factors of the inverse Hessian in this order, (dampings · groups, columns, columns).
        dampings: Number of regularizations.
    """

    order: Tensor
    factors: Tensor
    dampings: int

    @classmethod
    def of(cls, hessian: Tensor, dampings: Sequence[float] = (0.01,)) -> ErrorSpread:
        """From second moments of the inputs.

        Args:
            hessian: (groups, columns, columns): mean of ``x x^T`` of the inputs, or their covariance.
            dampings: Regularizations, each added to the diagonal as a share of its mean.
        """
        order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        ordered = _reordered(hessian, order)
        factors = torch.cat([_inverse_factor(ordered, damping) for damping in dampings]).to(hessian.dtype)
        return cls(order, factors, len(dampings))

    def alone(self, number: int) -> ErrorSpread:
        """That of one of the regularizations."""
        groups = len(self.order)
        return ErrorSpread(self.order, self.factors[number * groups : (number + 1) * groups], 1)


def gptq(rows: Tensor, params: QuantParams, spread: ErrorSpread) -> list[Tensor]:
    """Round a weight so that the output changes little, not each element.

    Inputs are rounded in the order of falling power. The error that rounding one makes is spread over those that are
    left, in the least-squares sense. With a diagonal Hessian this is rounding to the nearest.

    Args:
        rows: The weight as (groups, rows, columns), float32.
        params: Scheme, scales and zero points; they do not change.
        spread: Made from the inputs.

    Returns:
        For each damping the quantized and dequantized weight, same shape: every value lies on the grid of ``params``.

    References:
        E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ", ICLR 2023, https://arxiv.org/abs/2210.17323.
    """
    index = spread.order[:, None, :].expand(rows.shape)
    left = rows.gather(2, index).repeat(spread.dampings, 1, 1)
    grid = WeightGrid.of(rows, params).ordered(spread.order)
    if kernels.info().available:
        round_compensated(array_of(left), array_of(spread.factors), grid.native())
    else:
        round_by_blocks(left, grid.repeated(spread.dampings), spread.factors)
    return [torch.empty_like(rows).scatter_(2, index, part) for part in torch.split(left, len(rows))]


def round_by_blocks(left: Tensor, grid: WeightGrid, factors: Tensor) -> None:
    """What ``kernels.rounding.round_compensated`` does, where it was not built; ``left`` becomes the rounded weight."""
    width = left.shape[2]
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = _round_block(left[:, :, start:stop], grid, start, factors[:, start:stop, start:stop])
        left[:, :, stop:] -= errors @ factors[:, start:stop, stop:]


def _round_block(left: Tensor, grid: WeightGrid, start: int, factor: Tensor) -> Tensor:
    """Round the columns of a block in place; returns the errors that the columns after it make good."""
    errors = torch.empty_like(left)
    for column in range(left.shape[2]):
        value, error = left[:, :, column], errors[:, :, column]
        rounded = grid.nearest(value, start + column)
        torch.sub(value, rounded, out=error)
        error /= factor[:, None, column, column]
        value.copy_(rounded)
        left[:, :, column + 1 :].sub_(error[:, :, None] * factor[:, None, column, column + 1 :])
    return errors


def _reordered(hessian: Tensor, order: Tensor) -> Tensor:
    by_row = hessian.gather(1, order[:, :, None].expand(hessian.shape))
    return by_row.gather(2, order[:, None, :].expand(hessian.shape))


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse, in double precision."""
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(damped_factor(hessian, damping)), upper=True)
    return factor
