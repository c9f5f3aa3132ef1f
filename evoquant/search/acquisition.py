"""Which candidates to evaluate next: those from which the hypervolume is expected to gain the most."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike

from evoquant.search.domain import Floats
from evoquant.search.hypervolume import ReferencePoint, normalized_hypervolume

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
QUADRATURE_NODES: tuple[float, ...] = tuple(_NODES.tolist())
"""Numbers of standard deviations at which uncertain objectives are looked at."""
_SHARES = _WEIGHTS / _WEIGHTS.sum()


class ExpectedImprovement:
    """Expected gain of hypervolume over a front, by Gauss-Hermite quadrature.

    Uncertain objectives of one candidate are taken to be off by the same number of standard deviations, so a single
    sum over five nodes is enough.

    Args:
        reference: Scale of the hypervolume.
        front: Evaluated objectives, shape (points, objectives), dominated ones allowed.

    Attributes:
        promised: Expected gain of all that was chosen so far.

    References:
        M. Emmerich, K. Giannakoglou, B. Naujoks, "Single- and multiobjective evolutionary optimization assisted by
        Gaussian random field metamodels", IEEE Transactions on Evolutionary Computation 10(4), 2006,
        https://doi.org/10.1109/TEVC.2005.859463.
    """

    def __init__(self, reference: ReferencePoint, front: ArrayLike) -> None:
        self._reference = reference
        self._front = _useful(reference.normalized(front))
        self.promised = 0.0

    def gain(self, outcomes: Floats) -> float:
        """Expected gain of one candidate.

        Args:
            outcomes: Its objectives at each of ``QUADRATURE_NODES``, shape (5, objectives).
        """
        points = self._reference.normalized(outcomes)
        return float(np.dot(_SHARES, [self._improvement(point) for point in points]))

    def add(self, objectives: Floats) -> None:
        """Count a chosen candidate as if it were evaluated with these objectives."""
        self._front = _useful(np.vstack([self._front, self._reference.normalized(objectives)]))

    def choose(self, outcomes: Floats, chances: Floats, count: int) -> list[int]:
        """Up to ``count`` candidates, each the best after the ones before it; none that gains nothing.

        The gain of a candidate only falls while others are chosen, so it is computed anew only for the one on top.

        Args:
            outcomes: Objectives of each candidate at each node, shape (candidates, 5, objectives).
            chances: Probability of each candidate that it is feasible, shape (candidates,).
            count: How many to choose.
        """
        gains = [self.gain(outcome) * chance for outcome, chance in zip(outcomes, chances.tolist(), strict=True)]
        heap = [(-gain, index, 0) for index, gain in enumerate(gains) if gain > 0.0]
        heapq.heapify(heap)
        chosen: list[int] = []
        while heap and len(chosen) < count:
            gained, index, seen = heapq.heappop(heap)
            if seen < len(chosen):
                gain = self.gain(outcomes[index]) * float(chances[index])
                if gain > 0.0:
                    heapq.heappush(heap, (-gain, index, len(chosen)))
                continue
            chosen.append(index)
            self.promised -= gained
            self.add(outcomes[index, len(QUADRATURE_NODES) // 2])
        return chosen

    def _improvement(self, point: Floats) -> float:
        if (point >= 1.0).any() or (self._front <= point).all(axis=1).any():
            return 0.0
        own = float(np.prod(1.0 - point))
        covered = normalized_hypervolume(_useful(np.maximum(self._front, point)))
        return max(0.0, round(own - covered, 12))


def _useful(points: Floats) -> Floats:
    """Distinct non-dominated points inside the box."""
    inside = np.unique(points[(points < 1.0).all(axis=1)], axis=0)
    no_worse = np.asarray((inside[:, None, :] <= inside[None, :, :]).all(axis=2))
    return np.asarray(inside[no_worse.sum(axis=0) == 1], dtype=np.float64)
