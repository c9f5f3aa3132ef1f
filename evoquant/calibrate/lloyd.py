"""Levels of an activation that cost least: k-means in one dimension, exactly, over the 256 steps of a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evoquant import kernels
from evoquant.kernels.rounding import best_levels
from evoquant.quant import SMALLEST_SCALE, QuantParams
from evoquant.quant.params import MOST_STEPS
from evoquant.types import QuantizationScheme

Array = NDArray[np.float64]

STEPS = MOST_STEPS + 1
SHARES = (1.0, 0.8, 0.65, 0.5, 0.38, 0.28, 0.2, 0.14, 0.1)
"""Tried for each end of the range, as shares of the greatest value on its side."""
_BINS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class WeightedValues:
    """A distribution of values, each with what its square error costs, in narrow bins.

    Attributes:
        lowest: The least value, at most 0.
        highest: The greatest value, at least 0.
        centers: Of the bins, (bins,).
        mass: Sum of the weights in each bin.
        first: Sum of weight times value.
        second: Sum of weight times square.
    """

    lowest: float
    highest: float
    centers: Array
    mass: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, values: Tensor, weights: Tensor, lowest: float, highest: float) -> WeightedValues:
        """From samples: values and weights of one shape, and the range that they may lie in."""
        x, weight = values.flatten().double().numpy(), weights.flatten().double().numpy()
        weight = weight / max(weight.sum(), np.finfo(np.float64).tiny)
        width = max((highest - lowest) / _BINS, SMALLEST_SCALE)
        index = np.clip((x - lowest) / width, 0, _BINS - 1).astype(np.int64)
        centers = (np.arange(_BINS) + 0.5).astype(np.float64, copy=False) * width + lowest
        mass, first, second = (_summed(index, part, _BINS) for part in (weight, weight * x, weight * x * x))
        return cls(lowest, highest, centers, mass, first, second)

    @classmethod
    def of_bins(cls, probability: Tensor, centers: Tensor, lowest: float, highest: float) -> WeightedValues:
        """From a histogram, all values weighing the same."""
        mass, at = (part.flatten().double().numpy() for part in (probability, centers))
        return cls(lowest, highest, at, mass, mass * at, mass * at * at)


def lloyd_params(values: WeightedValues, bits: int) -> QuantParams:
    """The scale and the levels with the least weighted square error; zero is one of the levels.

    Each end of the range is tried in turn; for a range the levels are the best of all subsets of its 256 steps.

    References:
        S. P. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982; J. Max,
        1960. The exact solution is that of H. Wang and M. Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011.
    """
    lower = upper = 1.0
    best = _levels(values, bits, lower, upper)
    sides = [side for side, end in (("upper", values.highest), ("lower", values.lowest)) if end != 0.0]
    for side in (*sides, *sides[:-1]):
        for share in SHARES:
            if share == (upper if side == "upper" else lower):
                continue  # that is ``best``
            ends = (lower, share) if side == "upper" else (share, upper)
            found = _levels(values, bits, *ends)
            if found.cost < best.cost:
                best = found
        lower, upper = best.lower, best.upper
    zero_point = torch.tensor(0, dtype=torch.int32)
    scale = torch.tensor(best.scale, dtype=torch.float32)
    return QuantParams(QuantizationScheme.LLOYD, bits, scale, zero_point, 0, 2**bits - 1, levels=best.levels)


@dataclass(frozen=True, slots=True)
class _Levels:
    lower: float
    upper: float
    scale: float
    levels: tuple[int, ...]
    cost: float


def _levels(values: WeightedValues, bits: int, lower: float, upper: float) -> _Levels:
    """The best levels of one range, and what they cost."""
    low, high = lower * values.lowest, upper * values.highest
    scale = max((high - low) / MOST_STEPS, SMALLEST_SCALE)
    zero = round(-low / scale)
    step = np.clip(np.rint(values.centers / scale + zero), 0, MOST_STEPS).astype(np.int64)
    first = values.first / scale + zero * values.mass
    second = values.second / scale**2 + 2 * zero * values.first / scale + zero**2 * values.mass
    mass, first, second = (_summed(step, part, STEPS) for part in (values.mass, first, second))
    fixed = 1e4 * max(mass.sum(), np.finfo(np.float64).tiny)  # so heavy that its cluster has its level there
    mass[zero] += fixed
    first[zero] += fixed * zero
    second[zero] += fixed * zero**2
    levels, cost = best_subset(mass, first, second, 2**bits)
    return _Levels(lower, upper, scale, tuple(level - zero for level in levels), cost * scale**2)


def _summed(index: NDArray[np.int64], parts: Array, size: int) -> Array:
    """Sums of the parts that have one index."""
    return np.bincount(index, parts, size).astype(np.float64, copy=False)


def best_subset(mass: Array, first: Array, second: Array, count: int) -> tuple[list[int], float]:
    """The ``count`` integers in [0, steps) with the least weighted square error, and that error.

    Args:
        mass: Sum of the weights of the values that belong to each integer, (steps,).
        first: Sum of weight times value.
        second: Sum of weight times square.
        count: How many, at most as many as there are integers.
    """
    if kernels.info().available:
        return best_levels(mass, first, second, count)
    return best_subset_by_arrays(mass, first, second, count)


def best_subset_by_arrays(mass: Array, first: Array, second: Array, count: int) -> tuple[list[int], float]:
    """What ``kernels.rounding.best_levels`` does, where it was not built."""
    steps = len(mass)
    start, end = np.arange(steps)[:, None], np.arange(steps)[None, :]

    def between(part: Array) -> Array:
        total = np.concatenate([[0.0], np.cumsum(part)])
        difference: Array = total[end + 1] - total[start]
        return difference

    weight, sums, squares = between(mass), between(first), between(second)
    middle = (start + end) // 2
    centre = np.where(weight > 0, np.rint(sums / np.where(weight > 0, weight, 1.0)), middle).clip(start, end)
    error = np.maximum(squares - 2 * centre * sums + centre**2 * weight, 0.0)
    error[start > end] = np.inf
    # least[j]: the least error of what lies up to j, with one more level in each round.
    least, cuts = error[0], []
    for _ in range(count - 1):
        tried = least[:-1, None] + error[1:]
        cut = tried.argmin(axis=0)
        least = tried[cut, np.arange(steps)]
        cuts.append(cut)
    levels, last = [], steps - 1
    for cut in reversed(cuts):
        levels.append(int(centre[cut[last] + 1, last]))
        last = cut[last]
    levels.append(int(centre[0, last]))
    return levels[::-1], float(least[-1])
