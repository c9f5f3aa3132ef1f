"""Loops of rounding without an interpreter between them: over the columns of weights, and over sets of levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import KernelError
from evoquant.kernels.arrays import FloatArray, check_array
from evoquant.kernels.native import default_isa, native


@dataclass(frozen=True, slots=True, eq=False)
class RoundingPoints:
    """The points that each element of a weight may take.

    Attributes:
        scale: Of each element, (groups, rows, columns).
        table: Points in units of the scale, ascending, half way to the lower one; None: integers, half to even.
        bounds: The least and the greatest integer: two numbers, or two arrays like ``scale``.
    """

    scale: FloatArray
    table: FloatArray | None = None
    bounds: tuple[float, float] | tuple[FloatArray, FloatArray] = (0.0, 0.0)

    def native(self) -> object:
        """The native points.

        Raises:
            KernelError: If an array is not contiguous float32.
        """
        check_array("rounding", "scale", self.scale, np.float32)
        lower, upper = self.bounds
        if isinstance(lower, np.ndarray):
            return native().RoundingPoints(self.scale, self.table, 0.0, 0.0, lower, upper)
        return native().RoundingPoints(self.scale, self.table, lower, upper, None, None)


def round_compensated(weight: FloatArray, factors: FloatArray, points: RoundingPoints) -> None:
    """Round the columns of weights one after the other, in place; those behind a column make good its error.

    Args:
        weight: (batches, rows, columns); batch b has the points of group ``b % groups``.
        factors: Upper Cholesky factors of the inverse second moments of the inputs, (batches, columns, columns).
        points: What elements may be.

    Raises:
        KernelError: If arrays are not contiguous float32, or their shapes do not fit.
    """
    check_array("round_compensated", "weight", weight, np.float32)
    check_array("round_compensated", "factors", factors, np.float32)
    try:
        native().round_compensated(default_isa(), weight, factors, points.native())
    except (ValueError, RuntimeError) as error:
        raise KernelError(f"round_compensated: {error}; the weight is {weight.shape}.") from error


def best_levels(
    mass: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64], count: int
) -> tuple[list[int], float]:
    """The ``count`` integers with the least weighted square error of values in bins, and that error.

    Args:
        mass: Sum of the weights of the values that belong to each integer from 0 on, (steps,).
        first: Sum of weight times value.
        second: Sum of weight times square.
        count: How many, at most as many as there are integers.

    Raises:
        KernelError: If the arrays differ in size, or there are fewer integers than levels.
    """
    levels = np.empty(count, np.int32)
    try:
        cost = native().best_levels(mass, first, second, levels)
    except (ValueError, RuntimeError) as error:
        raise KernelError(f"best_levels: {error}; mass is {mass.shape}.") from error
    return levels.tolist(), float(cost)


def revise_rounding(
    weight: FloatArray, gradient: FloatArray, hessian: FloatArray, points: RoundingPoints, *, sweeps: int
) -> None:
    """Move rounded weights, one column at a time and in place, to the points with the least square output error.

    Args:
        weight: On the points, (groups, rows, columns).
        gradient: ``(weight - target) @ hessian``, same shape.
        hessian: Second moments of the inputs, (groups, columns, columns).
        points: What elements may be.
        sweeps: Passes over all columns.

    Raises:
        KernelError: If arrays are not contiguous float32, or their shapes do not fit.
    """
    for name, array in (("weight", weight), ("gradient", gradient), ("hessian", hessian)):
        check_array("revise_rounding", name, array, np.float32)
    try:
        native().revise_rounding(default_isa(), weight, gradient, hessian, points.native(), sweeps)
    except (ValueError, RuntimeError) as error:
        raise KernelError(f"revise_rounding: {error}; the weight is {weight.shape}.") from error
