"""The baselines that a search must beat at equal cost: random genomes, and the greedy descent of other tools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evoquant.errors import ConfigurationError
from evoquant.search.domain import Floats, Genes, GenomeDomain
from evoquant.search.operators import stacked
from evoquant.search.registry import SEARCHERS
from evoquant.search.searcher import Answers, Candidate, Ledger, checked_answers


@SEARCHERS.register("random")
class RandomSearch:
    """Random genomes that cover the whole range from coarse to fine, after the seeds.

    Args:
        domain: The genomes.
        n_objectives: Number of objectives.
        seed: Seed of all random choices.
        population_size: Candidates of one batch.
        evaluations: Budget of candidates, None for no limit.
        seeds: Genomes to propose first.
    """

    def __init__(
        self,
        domain: GenomeDomain,
        *,
        n_objectives: int,
        seed: int,
        population_size: int = 40,
        evaluations: int | None = None,
        seeds: Sequence[Genes] = (),
    ) -> None:
        if population_size < 1:
            raise ConfigurationError(f"population_size must be at least 1, but got {population_size}.")
        self._ledger = Ledger(domain, evaluations)
        self._n_objectives = n_objectives
        self._population_size = population_size
        self._seeds = stacked(seeds, domain)
        self._rng = np.random.default_rng(seed)

    def ask(self) -> list[Candidate]:
        """The next batch; see ``Searcher.ask``.

        Raises:
            RunError: If the last batch is not answered yet.
        """
        self._ledger.require_answered()
        if self._ledger.remaining == 0:
            return []
        taken: set[str] = set()
        genomes = self._ledger.fresh(self._seeds, taken)
        genomes += self._ledger.random_new(max(0, self._population_size - len(genomes)), self._rng, taken)
        return self._ledger.open(genomes[: self._ledger.batch_size(len(genomes))])

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Answer the last batch; see ``Searcher.tell``.

        Raises:
            RunError: If no batch is waiting, or the shapes do not fit it.
        """
        waiting = len(self._ledger.pending or ())
        checked_answers(objectives, violations, candidates=waiting, n_objectives=self._n_objectives)
        self._ledger.close()


@SEARCHERS.register("greedy")
class GreedySearch:
    """Lowers one group at a time, the one that costs least error for what it saves, from the finest genome down.

    First every group alone is lowered by one choice, to learn what it does; then groups are lowered for good, one more
    in each candidate, in the order of error per saving; then the same from where that ended, until nothing is left to
    lower. The first objective is the error; the saving is the mean relative gain in all others. This is how automatic
    mixed precision of most tools works. It draws nothing at random and ends by itself.

    Args:
        domain: The genomes.
        n_objectives: Number of objectives.
        seed: Taken for the sake of the common interface; it has no effect.
        evaluations: Budget of candidates, None for no limit.
        seeds: Genomes to propose first; the descent does not start from them.
        ladder: Genomes from coarse to fine whose parts are the levels of each group, such as the uniform presets;
            None takes up to eight choices of each group, evenly spaced.
    """

    def __init__(
        self,
        domain: GenomeDomain,
        *,
        n_objectives: int,
        seed: int,  # noqa: ARG002
        evaluations: int | None = None,
        seeds: Sequence[Genes] = (),
        ladder: Sequence[Genes] | None = None,
    ) -> None:
        self._domain = domain
        self._ledger = Ledger(domain, evaluations)
        self._n_objectives = n_objectives
        self._seeds = stacked(seeds, domain)
        self._rungs = _spaced(domain) if ladder is None else _parts(stacked(ladder, domain), domain)
        self._levels = np.array([len(rungs) - 1 for rungs in self._rungs])
        self._known: dict[str, Floats] = {}
        self._round: list[int] = []
        self._stage = "seeds"

    def ask(self) -> list[Candidate]:
        """The next batch; see ``Searcher.ask``.

        Raises:
            RunError: If the last batch is not answered yet.
        """
        self._ledger.require_answered()
        while self._ledger.remaining != 0 and self._stage != "done":
            batch = self._ledger.fresh(self._next_genomes(), set())
            if batch:
                return self._ledger.open(batch[: self._ledger.batch_size(len(batch))])
        return []

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Answer the last batch; see ``Searcher.tell``.

        Raises:
            RunError: If no batch is waiting, or the shapes do not fit it.
        """
        waiting = len(self._ledger.pending or ())
        answers: Answers = checked_answers(objectives, violations, candidates=waiting, n_objectives=self._n_objectives)
        usable = zip(self._ledger.close(), answers.objectives, answers.failed, strict=True)
        self._known |= {candidate.key: values for candidate, values, failed in usable if not failed}

    def _next_genomes(self) -> list[Genes]:
        """The genomes of the next stage, some of which may be known already."""
        if self._stage == "seeds":
            self._stage = "probe"
            return [*self._seeds, self._genome(self._levels)]
        lowered = [group for group, level in enumerate(self._levels.tolist()) if level > 0]
        if not lowered:
            self._stage = "done"
            return []
        if self._stage == "probe":
            self._stage = "walk"
            return [self._genome(self._without(group)) for group in lowered]
        self._stage = "probe"
        path = []
        for group in sorted(lowered, key=lambda group: (self._price(group), group)):
            self._levels = self._without(group)
            path.append(self._genome(self._levels))
        return path

    def _genome(self, levels: Genes) -> Genes:
        pairs = zip(self._rungs, levels.tolist(), strict=True)
        return self._domain.repair(np.concatenate([rungs[level] for rungs, level in pairs]))

    def _without(self, group: int) -> Genes:
        levels = self._levels.copy()
        levels[group] -= 1
        return levels

    def _price(self, group: int) -> float:
        """Error added for each unit of relative saving, judged from the present levels; inf where unknown."""
        here = self._known.get(self._domain.phenotype(self._genome(self._levels)))
        there = self._known.get(self._domain.phenotype(self._genome(self._without(group))))
        if here is None or there is None:
            return np.inf
        error = float(there[0] - here[0])
        saving = float(np.mean((here[1:] - there[1:]) / np.maximum(np.abs(here[1:]), 1e-12))) if len(here) > 1 else 1.0
        if saving <= 0.0:
            return np.inf if error >= 0.0 else 0.0
        return error / saving


_MOST_RUNGS = 8


def _spaced(domain: GenomeDomain) -> list[Genes]:
    """Up to eight choices of each group, the coarsest and the finest among them."""
    return [
        choices[np.unique(np.linspace(0, len(choices) - 1, _MOST_RUNGS).round().astype(np.int64))]
        for choices in domain.choices
    ]


def _parts(ladder: Genes, domain: GenomeDomain) -> list[Genes]:
    """The parts of a ladder of genomes, group by group, without repetitions of neighbours."""
    if not len(ladder):
        raise ConfigurationError("A ladder needs at least one genome.")
    parts = ladder.reshape(len(ladder), domain.n_groups, domain.n_axes)
    changes = (parts[1:] != parts[:-1]).any(axis=2)
    return [parts[np.concatenate([[True], changes[:, group]]), group] for group in range(domain.n_groups)]
