"""The interface of every search: ask for candidates, tell what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from evoquant.errors import ConfigurationError, RunError
from evoquant.search.domain import Floats, Genes, GenomeDomain
from evoquant.search.operators import random_genomes

_TRIES_PER_CANDIDATE = 50
_ENUMERABLE_LOG10 = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A genome that waits for its evaluation.

    Attributes:
        id: Number in the order of proposals, from 0.
        genes: The repaired genome.
        key: Name of its phenotype; no two candidates of a search share one.
    """

    id: int
    genes: Genes
    key: str


class Searcher(Protocol):
    """Proposes genomes and learns from their objectives.

    Two searchers made with the same arguments and told the same answers propose the same candidates; so a search is
    resumed by making it anew and telling it the recorded answers.
    """

    def ask(self) -> list[Candidate]:
        """The next batch, empty when the budget is spent or nothing new is left to propose.

        Raises:
            RunError: If the last batch is not answered yet.
        """

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Answer the last batch, in its order.

        Args:
            objectives: Shape (candidates, objectives), all minimised; a row with nan or inf says that the candidate
                failed.
            violations: How far each constraint is violated, shape (candidates,) or (candidates, constraints); what
                is at most 0 is fulfilled. None: there are no constraints.

        Raises:
            RunError: If no batch is waiting, or the shapes do not fit it.
        """


@runtime_checkable
class Learner(Protocol):
    """A searcher that can also learn from candidates that others have evaluated."""

    def learn(self, genomes: Genes, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Take evaluated genomes in: they cost nothing of the budget and are not proposed from now on.

        Args:
            genomes: Repaired genomes of shape (candidates, genes).
            objectives: As in ``Searcher.tell``.
            violations: As in ``Searcher.tell``.

        Raises:
            RunError: If a batch waits for its answers, or the shapes do not fit.
        """


@dataclass(frozen=True, slots=True)
class Answers:
    """Checked answers to a batch.

    Attributes:
        objectives: Shape (candidates, objectives), nan or inf where the candidate failed.
        violation: Sum of the positive violations of each candidate, shape (candidates,); inf where it failed.
        margin: The greatest violation of each candidate, negative if it fulfils all constraints with room to spare.
    """

    objectives: Floats
    violation: Floats
    margin: Floats

    @property
    def failed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which candidates have no usable objectives."""
        return ~np.isfinite(self.violation)


def checked_answers(
    objectives: ArrayLike, violations: ArrayLike | None, *, candidates: int, n_objectives: int
) -> Answers:
    """Check the shapes of answers and mark the failed ones.

    Raises:
        RunError: If the shapes do not fit the batch.
    """
    values = np.array(objectives, dtype=np.float64)
    if values.shape != (candidates, n_objectives):
        raise RunError(f"Expected objectives of shape {(candidates, n_objectives)}, but got {values.shape}.")
    violation, margin = np.zeros(candidates), np.zeros(candidates)
    if violations is not None:
        given = np.array(violations, dtype=np.float64)
        if given.ndim not in (1, 2) or len(given) != candidates:
            raise RunError(f"Expected violations of {candidates} candidates, but got the shape {given.shape}.")
        by_constraint = given.reshape(candidates, -1)
        violation, margin = np.maximum(by_constraint, 0.0).sum(axis=1), by_constraint.max(axis=1, initial=-np.inf)
        margin = np.where(by_constraint.shape[1] > 0, margin, 0.0)
    violation[~np.isfinite(values).all(axis=1) | ~np.isfinite(violation)] = np.inf
    return Answers(values, violation, margin)


class Ledger:
    """What a search has proposed: gives numbers, refuses repetitions, keeps the budget.

    Args:
        domain: The genomes.
        evaluations: How many candidates may be proposed in all; None sets no limit.

    Raises:
        ConfigurationError: If ``evaluations`` is less than 1.
    """

    def __init__(self, domain: GenomeDomain, evaluations: int | None) -> None:
        if evaluations is not None and evaluations < 1:
            raise ConfigurationError(f"evaluations must be at least 1, but got {evaluations}.")
        self.domain = domain
        self.keys: set[str] = set()
        self.evaluated_elsewhere: set[str] = set()
        self.pending: list[Candidate] | None = None
        self._evaluations = evaluations

    @property
    def remaining(self) -> int | None:
        """Candidates that may still be proposed, None without a limit."""
        return None if self._evaluations is None else self._evaluations - len(self.keys)

    def batch_size(self, wanted: int) -> int:
        """The wanted number of candidates, or what the budget leaves."""
        return wanted if self.remaining is None else min(wanted, self.remaining)

    def require_answered(self) -> None:
        """Refuse a second batch before the first one is answered."""
        if self.pending is not None:
            raise RunError(f"{len(self.pending)} candidates wait for their answers: tell before the next ask.")

    def open(self, genomes: Iterable[Genes]) -> list[Candidate]:
        """Number the genomes of a batch, all of them new."""
        batch = []
        for genes in genomes:
            key = self.domain.phenotype(genes)
            batch.append(Candidate(len(self.keys), genes, key))
            self.keys.add(key)
        self.pending = batch or None
        return batch

    def close(self) -> list[Candidate]:
        """The batch that is answered now."""
        if self.pending is None:
            raise RunError("No candidates wait for an answer: ask before tell.")
        batch, self.pending = self.pending, None
        return batch

    def withdraw(self, most: int) -> None:
        """Take back the batch that waits, if one does; from now on at most so many candidates may be proposed."""
        self.keys.difference_update(candidate.key for candidate in self.pending or ())
        self.pending = None
        self._evaluations = len(self.keys) + most

    def is_new(self, genes: Genes, also_taken: set[str]) -> bool:
        """Whether this phenotype was never proposed and is not among ``also_taken``, to which it is then added."""
        key = self.domain.phenotype(genes)
        if key in self.keys or key in self.evaluated_elsewhere or key in also_taken:
            return False
        also_taken.add(key)
        return True

    def fresh(self, genomes: Iterable[Genes], also_taken: set[str]) -> list[Genes]:
        """Those genomes that are new, each phenotype once."""
        return [genes for genes in genomes if self.is_new(genes, also_taken)]

    def random_new(self, count: int, rng: np.random.Generator, also_taken: set[str]) -> list[Genes]:
        """Up to ``count`` new random genomes; of a small space all that are left, of a large one what is found."""
        found: list[Genes] = []
        for _ in range(_TRIES_PER_CANDIDATE):
            if len(found) >= count:
                return found
            drawn = self.domain.repair(random_genomes(self.domain, count - len(found), rng))
            found += self.fresh(drawn, also_taken)
        if len(found) < count and self.domain.size_log10 <= _ENUMERABLE_LOG10:
            left = self.fresh((self.domain.repair(genes) for genes in self.domain.everything()), set(also_taken))
            picked = rng.permutation(len(left))[: count - len(found)]
            found += self.fresh((left[index] for index in picked.tolist()), also_taken)
        return found


def first_of(sequence: Sequence[Genes], count: int | None) -> list[Genes]:
    """The first ``count`` genomes, all if None."""
    return list(sequence if count is None else sequence[:count])
