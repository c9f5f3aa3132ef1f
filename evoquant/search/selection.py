"""Choosing one point of a front: the knee, those within limits, a ranking by wishes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evoquant.errors import ConfigurationError, InfeasibleError
from evoquant.search.domain import Floats


def knee(
    objectives: ArrayLike,
    *,
    weights: Sequence[float] | None = None,
    limits: Sequence[float | None] | None = None,
) -> int:
    """Index of the point where giving up a little of one objective stops buying much of another.

    Each objective becomes ``log(1 + x) / log(1 + max x)`` with x its distance from the best value in units of the
    median distance. The logarithm makes a heavy tail, such as the error of a few useless points, count little; an
    evenly spread objective is hardly bent. The knee is the point nearest to the best corner in this scale. Ties go to
    the smaller objectives, so the order of the points does not matter.

    Args:
        objectives: A front, shape (points, objectives), all minimised.
        weights: Importance of each objective; None makes all equal. Correlated objectives together weigh more than
            one alone, so give them less each.
        limits: Only points with objectives at most these are eligible, None for no limit; if none is, all are.

    Raises:
        InfeasibleError: If the front is empty.
    """
    values = _front(objectives)
    eligible = np.array(query(values, limits or [None] * values.shape[1]), dtype=np.int64)
    if not len(eligible):
        eligible = np.arange(len(values))
    scaled: Floats = _bent(values[eligible]) * np.sqrt(_weights(weights, values.shape[1]))
    distance = np.round(np.linalg.norm(scaled, axis=1), 12)
    order = np.lexsort([*values[eligible].T[::-1], distance])
    return int(eligible[order[0]])


def query(objectives: ArrayLike, limits: Sequence[float | None]) -> list[int]:
    """Indices of the points whose objectives are all at most the limits.

    Args:
        objectives: Shape (points, objectives).
        limits: One for each objective, None for no limit.
    """
    values = _front(objectives)
    if len(limits) != values.shape[1]:
        raise ConfigurationError(f"Expected {values.shape[1]} limits, one for each objective, but got {len(limits)}.")
    bounds = np.array([np.inf if limit is None else limit for limit in limits], dtype=np.float64)
    indices: list[int] = np.flatnonzero((values <= bounds).all(axis=1)).tolist()
    return indices


def ranking(objectives: ArrayLike, weights: Sequence[float]) -> list[int]:
    """Indices of the points of a front, best weighted sum first.

    Each objective is scaled to [0, 1] over the front. The weights only rank what is already non-dominated: they take
    no part in finding it.

    Args:
        objectives: A front, shape (points, objectives), all minimised.
        weights: Importance of each objective, not negative, not all 0.
    """
    values = _front(objectives)
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(span > 0.0, span, 1.0)
    score: Floats = np.round(scaled @ _weights(weights, values.shape[1]), 12)
    order: list[int] = np.lexsort([*values.T[::-1], score]).tolist()
    return order


def _front(objectives: ArrayLike) -> Floats:
    values = np.array(objectives, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InfeasibleError(f"Expected a front of shape (points, objectives), but got the shape {values.shape}.")
    return values


def _weights(weights: Sequence[float] | None, count: int) -> Floats:
    given = np.ones(count) if weights is None else np.array(weights, dtype=np.float64)
    if given.shape != (count,) or (given < 0.0).any() or not given.any():
        raise ConfigurationError(f"Expected {count} weights, none negative and not all 0, but got {weights}.")
    return np.asarray(given / given.sum(), dtype=np.float64)


def _bent(values: Floats) -> Floats:
    distance: Floats = values - values.min(axis=0)
    bent: Floats = np.zeros_like(distance)
    for axis in np.flatnonzero(distance.any(axis=0)).tolist():
        column = distance[:, axis]
        unit = np.median(column[column > 0.0])
        bent[:, axis] = np.log1p(column / unit) / np.log1p(column.max() / unit)
    return bent
