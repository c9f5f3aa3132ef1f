"""Several architectures contend for one budget of evaluations: the next batch is of the one that promises the most.

The promise of an architecture is the hypervolume that a candidate of its next batch is expected to add to the common
front. While only others are evaluated its own models stay as they are and the front grows, so its promise only falls:
it is computed anew only for the architecture on top, as the gains of the candidates of one batch are.

References:
    M. Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", Optimization Techniques, 1978,
    https://doi.org/10.1007/BFb0006528.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from evoquant.config import Experiment
from evoquant.evaluate import Standing
from evoquant.run.evaluations import Evaluations, OnRecord
from evoquant.run.exploration import Answered
from evoquant.run.target_search import TargetSearch
from evoquant.run.targets import Target
from evoquant.search import Candidate, ParetoArchive, SurrogateSearch


class Contender(TargetSearch):
    """The search for one of several architectures; its archive is that of all.

    Args:
        name: What the experiment calls the architecture.
        experiment: The experiment of the architecture.
        target: The device, with the space and the costs of the architecture.
        evaluations: Evaluates its plans.
        batches: Selection images of each batch.
        classes: For the published hybrid rule.
        standing: Where the architecture stands on the selection images.
        archive: The common front.
        first: The most evaluations of its first batch.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        target: Target,
        evaluations: Evaluations,
        *,
        batches: Sequence[int],
        classes: Mapping[str, str],
        standing: Standing,
        archive: ParetoArchive,
        first: int,
    ) -> None:
        super().__init__(
            experiment, target, evaluations, batches=batches, classes=classes, standing=standing, archive=archive
        )
        self.name, self.standing = name, standing
        self.promise = math.inf
        self._first = first
        self._batch: list[Candidate] = []
        self._proposed_at = -1

    @cached_property
    def searcher(self) -> SurrogateSearch:
        """The search, on the scale of the common front as this architecture sees it."""
        reference = self.exploration.archive.reference
        assert reference is not None, "derived from the presets"
        return self.factory.contender(first=self._first, reference=reference.moved(-self.exploration.shift))

    @property
    def is_up_to_date(self) -> bool:
        """Whether nothing was evaluated since the batch was proposed."""
        return self._proposed_at == self.exploration.archive.evaluations

    def propose(self, most: int) -> bool:
        """Choose the next batch against the common front as it is now; whether there is one.

        Args:
            most: Evaluations that are left for all architectures.
        """
        archive, shift = self.exploration.archive, self.exploration.shift
        front = np.array([entry.objectives for entry in archive.front]).reshape(-1, len(shift)) - shift
        allowed = most if self.generation else min(most, self._first)
        self._batch, self.promise = self.searcher.propose(front, most=allowed)
        self._proposed_at = archive.evaluations
        return bool(self._batch)

    async def step(self, on_record: OnRecord) -> list[Answered]:
        """Evaluate the proposed batch."""
        answered = await self.exploration.step(self.searcher, proposed=self._batch, on_record=on_record)
        self.generation += bool(answered)
        self.promise = math.inf
        return answered


def first_evaluations(experiment: Experiment) -> int:
    """The most evaluations of the first batch of an architecture: half of the budget is left for what is promised."""
    return max(1, experiment.search.evaluations // (2 * len(experiment.architectures)))


def most_promising(contenders: Sequence[Contender], most: int) -> Contender | None:
    """The contender whose batch is evaluated next: each has its first one, then the promises decide.

    Args:
        contenders: All of them.
        most: Evaluations that are left.

    Returns:
        The first of those with the greatest promise; None if nothing is left to evaluate.
    """
    waiting = list(contenders) if most > 0 else []
    while waiting:
        best = max(waiting, key=lambda contender: (contender.generation == 0, contender.promise))
        if best.is_up_to_date:
            return best
        if not best.propose(most):
            waiting.remove(best)
    return None
