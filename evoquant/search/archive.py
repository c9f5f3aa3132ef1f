"""Everything that a search has evaluated, and the front of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from evoquant.errors import InfeasibleError
from evoquant.search.domain import Genes
from evoquant.search.hypervolume import ReferencePoint


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """An evaluated candidate.

    Attributes:
        id: Number of the candidate.
        key: Name of its phenotype.
        genes: Its genome.
        objectives: All minimised; empty or not finite if it failed.
        violation: Sum of the positive constraint violations, 0 if it is feasible.
        is_stopped: Whether its objectives are estimates, because it was dominated with confidence before the end.
    """

    id: int
    key: str
    genes: Genes
    objectives: tuple[float, ...]
    violation: float = 0.0
    is_stopped: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether there are no usable objectives."""
        return not self.objectives or not np.isfinite([*self.objectives, self.violation]).all()

    @property
    def is_feasible(self) -> bool:
        """Whether it has objectives and fulfils all constraints."""
        return not self.has_failed and self.violation <= 0.0


class ParetoArchive:
    """The non-dominated feasible candidates among all that were added, in whatever order.

    Of candidates with equal objectives the one with the smallest key stays. While nothing is feasible the best
    infeasible candidate is kept: the least violation, then the least objectives. Of a stopped
    candidate nothing is kept.

    Args:
        reference: Scale of the hypervolume; it can be given later, once.
    """

    def __init__(self, reference: ReferencePoint | None = None) -> None:
        self._front: dict[str, Evaluated] = {}
        self._least_infeasible: Evaluated | None = None
        self._evaluations = 0
        self._failures = 0
        self._stopped = 0
        self._reference = reference
        self._history: list[tuple[int, float]] = []

    @property
    def front(self) -> tuple[Evaluated, ...]:
        """The front, sorted by objectives; empty while nothing is feasible."""
        return tuple(sorted(self._front.values(), key=_order))

    @property
    def best_infeasible(self) -> Evaluated | None:
        """The candidate nearest to fulfilling the constraints among those that do not."""
        return self._least_infeasible

    @property
    def evaluations(self) -> int:
        """Number of candidates added, failed and stopped ones included."""
        return self._evaluations

    @property
    def failures(self) -> int:
        """Number of failed candidates."""
        return self._failures

    @property
    def stopped(self) -> int:
        """Number of stopped candidates."""
        return self._stopped

    @property
    def reference(self) -> ReferencePoint | None:
        """Scale of the hypervolume."""
        return self._reference

    @property
    def history(self) -> tuple[tuple[int, float], ...]:
        """Evaluations and hypervolume at each ``record``."""
        return tuple(self._history)

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front.

        Raises:
            InfeasibleError: If there is no reference point yet.
        """
        if self._reference is None:
            raise InfeasibleError("The archive has no reference point: freeze one after the first evaluations.")
        if not self._front:
            return 0.0
        return self._reference.hypervolume([entry.objectives for entry in self._front.values()])

    def freeze(self, reference: ReferencePoint) -> None:
        """Set the reference point for good.

        Raises:
            InfeasibleError: If another one is set already.
        """
        if self._reference not in (None, reference):
            raise InfeasibleError(f"The reference point is frozen at {self._reference}, it cannot become {reference}.")
        self._reference = reference

    def add(self, entries: Iterable[Evaluated]) -> bool:
        """Take evaluated candidates in; whether the front has changed."""
        has_changed = False
        for entry in entries:
            self._evaluations += 1
            if entry.has_failed:
                self._failures += 1
            elif entry.is_stopped:
                self._stopped += 1
            elif entry.is_feasible:
                has_changed |= self._insert(entry)
            elif self._least_infeasible is None or _infeasible_order(entry) < _infeasible_order(self._least_infeasible):
                self._least_infeasible = entry
        return has_changed

    def record(self) -> float:
        """Note the present hypervolume in the history and return it."""
        value = self.hypervolume
        self._history.append((self._evaluations, value))
        return value

    def _insert(self, entry: Evaluated) -> bool:
        members = list(self._front.values())
        if members:
            objectives = np.array([member.objectives for member in members])
            own = np.array(entry.objectives)
            no_worse, no_better = (objectives <= own).all(axis=1), (objectives >= own).all(axis=1)
            equal = no_worse & no_better
            if (no_worse & ~equal).any():
                return False
            if equal.any() and members[int(np.argmax(equal))].key <= entry.key:
                return False
            for index in np.flatnonzero(no_better).tolist():
                del self._front[members[index].key]
        self._front[entry.key] = entry
        return True


def _order(entry: Evaluated) -> tuple[tuple[float, ...], str]:
    return entry.objectives, entry.key


def _infeasible_order(entry: Evaluated) -> tuple[float, tuple[float, ...], str]:
    return entry.violation, entry.objectives, entry.key
