"""NSGA-II of pymoo behind ask and tell, with operators of ours and no hidden random state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination

from evoquant.errors import ConfigurationError
from evoquant.search.domain import Genes, GenomeDomain
from evoquant.search.operators import Variation, VariationRates, stacked
from evoquant.search.registry import SEARCHERS
from evoquant.search.searcher import Candidate, Ledger, checked_answers

_FAILED = 1e30


class _Seeds(Sampling):  # type: ignore[misc]
    """The first generation: the seeds, then new random genomes."""

    def __init__(self, ledger: Ledger, seeds: Genes) -> None:
        super().__init__()
        self.ledger, self.seeds = ledger, seeds

    def _do(self, problem: Problem, n_samples: int, *, random_state: np.random.Generator, **_: object) -> Genes:
        taken: set[str] = set()
        genomes = self.ledger.fresh(self.seeds, taken)
        genomes += self.ledger.random_new(max(0, n_samples - len(genomes)), random_state, taken)
        return np.array(genomes, dtype=np.int64).reshape(-1, problem.n_var)


class _Cross(Crossover):  # type: ignore[misc]
    def __init__(self, variation: Variation) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=1.0)
        self.variation = variation

    def _do(self, problem: Problem, genomes: Genes, *, random_state: np.random.Generator, **_: object) -> Genes:  # noqa: ARG002
        children = np.empty_like(genomes)
        for pair in range(genomes.shape[1]):
            children[:, pair] = self.variation.cross(genomes[0, pair], genomes[1, pair], random_state)
        return children


class _Mutate(Mutation):  # type: ignore[misc]
    def __init__(self, variation: Variation) -> None:
        super().__init__(prob=1.0)
        self.variation = variation

    def _do(self, problem: Problem, genomes: Genes, *, random_state: np.random.Generator, **_: object) -> Genes:  # noqa: ARG002
        return np.array([self.variation.mutate(genes, random_state) for genes in genomes], dtype=np.int64)


class _Repair(Repair):  # type: ignore[misc]
    def __init__(self, domain: GenomeDomain) -> None:
        super().__init__()
        self.domain = domain

    def _do(self, problem: Problem, genomes: Genes, **_: object) -> Genes:  # noqa: ARG002
        return self.domain.repair(genomes.astype(np.int64)) if len(genomes) else genomes


class _NewPhenotypes(DuplicateElimination):  # type: ignore[misc]
    """Keeps what was never proposed, in this batch or before."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def do(self, pop: Population, *others: Population, **_: object) -> Population:
        taken = {self.ledger.domain.phenotype(individual.X) for other in others for individual in other}
        return pop[[index for index, one in enumerate(pop) if self.ledger.is_new(one.X, taken)]]


@SEARCHERS.register("nsga2")
class Nsga2Search:
    """NSGA-II with constrained domination, which never proposes one phenotype twice.

    A failed candidate counts as the worst violation of all, so it never enters the front and soon leaves the
    population. The search is a function of its arguments and of the answers: pymoo draws from one generator that is
    made from ``seed``.

    Args:
        domain: The genomes.
        n_objectives: Number of objectives, all minimised.
        seed: Seed of all random choices.
        population_size: Candidates of one generation; the first one has more if there are more seeds.
        evaluations: Budget of candidates, None for no limit.
        generations: Budget of batches, None for no limit.
        seeds: Genomes to propose first.
        rates: How often each operator is used.

    Raises:
        ConfigurationError: If a size is less than 1 or a seed does not fit the domain.

    References:
        K. Deb, A. Pratap, S. Agarwal, T. Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II",
        IEEE Transactions on Evolutionary Computation 6(2), 2002, https://doi.org/10.1109/4235.996017.
    """

    def __init__(
        self,
        domain: GenomeDomain,
        *,
        n_objectives: int,
        seed: int,
        population_size: int = 40,
        evaluations: int | None = None,
        generations: int | None = None,
        seeds: Sequence[Genes] = (),
        rates: VariationRates | None = None,
    ) -> None:
        for name, value in (("n_objectives", n_objectives), ("population_size", population_size)):
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, but got {value}.")
        self.n_objectives = n_objectives
        self.population_size = population_size
        self.generation = 0
        self._generations = generations
        self._ledger = Ledger(domain, evaluations)
        self._batch = Population.empty()
        self._algorithm = _algorithm(self, domain, seed, stacked(seeds, domain), rates or VariationRates())

    @property
    def proposed(self) -> int:
        """Number of candidates proposed so far."""
        return len(self._ledger.keys)

    def ask(self) -> list[Candidate]:
        """The next generation, empty when the budget is spent or every phenotype was proposed.

        Raises:
            RunError: If the last batch is not answered yet.
        """
        self._ledger.require_answered()
        is_over = self._generations is not None and self.generation >= self._generations
        if is_over or self._ledger.remaining == 0:
            return []
        self._algorithm.termination.force_termination = False
        infills = self._algorithm.ask()
        genomes = [] if infills is None else list(infills.get("X").astype(np.int64))
        if self.generation > 0 and len(genomes) < self.population_size:
            taken = {self._ledger.domain.phenotype(genes) for genes in genomes}
            missing = self.population_size - len(genomes)
            genomes += self._ledger.random_new(missing, self._algorithm.random_state, taken)
        batch = self._ledger.open(genomes[: self._ledger.batch_size(len(genomes))])
        self._batch = Population.new("X", np.array([candidate.genes for candidate in batch]))
        return batch

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Answer the last batch, in its order; see ``Searcher.tell``.

        Raises:
            RunError: If no batch is waiting, or the shapes do not fit it.
        """
        answers = checked_answers(
            objectives, violations, candidates=len(self._ledger.pending or ()), n_objectives=self.n_objectives
        )
        self._ledger.close()
        failed = answers.failed
        self._batch.set("F", np.where(failed[:, None], 0.0, answers.objectives))
        self._batch.set("G", np.where(failed, _FAILED, answers.violation)[:, None])
        self._algorithm.tell(infills=self._batch)
        self.generation += 1


def _algorithm(search: Nsga2Search, domain: GenomeDomain, seed: int, seeds: Genes, rates: VariationRates) -> NSGA2:
    ledger = search._ledger
    variation = Variation(domain, rates)
    algorithm = NSGA2(
        pop_size=search.population_size,
        sampling=_Seeds(ledger, seeds),
        crossover=_Cross(variation),
        mutation=_Mutate(variation),
        repair=_Repair(domain),
        eliminate_duplicates=_NewPhenotypes(ledger),
        output=None,
        seed=seed,
    )
    problem = Problem(
        n_var=domain.n_genes, n_obj=search.n_objectives, n_ieq_constr=1, xl=0, xu=domain.upper_bounds, vtype=int
    )
    algorithm.setup(problem, termination=NoTermination())
    return algorithm
