"""The hypervolume of a front, on a scale that is fixed once and then kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from pymoo.indicators.hv import HV

from evoquant.errors import ConfigurationError, InfeasibleError
from evoquant.search.domain import Floats

_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class ReferencePoint:
    """The box in which hypervolume is measured: a share of 1 would be a front that reaches ``ideal`` everywhere.

    Derived once, from the first evaluated candidates, and stored with the run, so that the hypervolume of a growing
    archive never falls and that of a resumed run is the same.

    Attributes:
        point: Upper corner: objectives at least as bad in one axis count nothing.
        ideal: Lower corner: better values count as this one.
    """

    point: tuple[float, ...]
    ideal: tuple[float, ...]

    def __post_init__(self) -> None:
        is_box = len(self.point) == len(self.ideal) and all(
            low < high for low, high in zip(self.ideal, self.point, strict=True)
        )
        if not is_box:
            raise ConfigurationError(
                f"Every coordinate of the reference point must exceed that of the ideal one, but got {self.point} and "
                f"{self.ideal}."
            )

    @classmethod
    def derive(cls, objectives: ArrayLike, *, limits: Sequence[float | None] | None = None) -> Self:
        """The box around the first evaluated candidates, a tenth wider than the worst of them.

        The lower corner is 0 for an objective that is never negative, else a tenth below the best.

        Args:
            objectives: Shape (candidates, objectives); rows with nan or inf are left out.
            limits: For each objective the largest useful coordinate of the reference point, None for no limit. One
                useless candidate with a huge error would otherwise make all the interesting differences vanish.

        Raises:
            InfeasibleError: If no row is finite.
        """
        values = np.array(objectives, dtype=np.float64)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            raise InfeasibleError("No candidate could be evaluated, so there is no scale for the hypervolume.")
        best, worst = values.min(axis=0), values.max(axis=0)
        spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
        ideal = np.where(best >= 0.0, 0.0, best - (_MARGIN - 1.0) * spread)
        point = np.where(worst > 0.0, worst * _MARGIN, worst + (_MARGIN - 1.0) * spread)
        for axis, limit in enumerate(limits or ()):
            if limit is not None and ideal[axis] < limit < point[axis]:
                point[axis] = limit
        return cls(tuple(point.tolist()), tuple(ideal.tolist()))

    def normalized(self, objectives: ArrayLike) -> Floats:
        """Objectives on the scale of the box: 0 at ``ideal`` or better, 1 at the reference point."""
        values = np.array(objectives, dtype=np.float64).reshape(-1, len(self.point))
        low, high = np.array(self.ideal), np.array(self.point)
        return np.asarray(np.maximum((values - low) / (high - low), 0.0), dtype=np.float64)

    def hypervolume(self, objectives: ArrayLike) -> float:
        """Share of the box that a set of objectives dominates, in [0, 1].

        Args:
            objectives: Shape (points, objectives), dominated points allowed.

        References:
            E. Zitzler and L. Thiele, "Multiobjective optimization using evolutionary algorithms: a comparative case
            study", PPSN V, 1998, https://doi.org/10.1007/BFb0056872.
        """
        return normalized_hypervolume(self.normalized(objectives))

    def moved(self, by: ArrayLike) -> Self:
        """The same box elsewhere: volumes of objectives that are moved with it stay what they are."""
        step = np.array(by, dtype=np.float64)
        return type(self)(*(tuple((np.array(corner) + step).tolist()) for corner in (self.point, self.ideal)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"point": list(self.point), "ideal": list(self.ideal)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(tuple(map(float, data["point"])), tuple(map(float, data["ideal"])))


def normalized_hypervolume(points: Floats) -> float:
    """Volume that points of shape (points, objectives) dominate below the corner (1, ..., 1)."""
    inside = points[(points < 1.0).all(axis=1)]
    return float(HV(ref_point=np.ones(points.shape[1]))(inside)) if len(inside) else 0.0
