"""Surrogate-assisted search: evaluate only what a model, refitted after every batch, expects to enlarge the front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from threadpoolctl import threadpool_limits

from evoquant.errors import ConfigurationError
from evoquant.search.acquisition import QUADRATURE_NODES, ExpectedImprovement
from evoquant.search.additive import AdditiveModel
from evoquant.search.domain import Floats, Genes, GenomeDomain
from evoquant.search.hypervolume import ReferencePoint
from evoquant.search.nsga2 import Nsga2Search
from evoquant.search.operators import Variation, VariationRates, stacked
from evoquant.search.registry import SEARCHERS
from evoquant.search.searcher import Answers, Candidate, Ledger, checked_answers
from evoquant.search.surrogate import GeneFeatures, Prediction, Scale, Surrogate, rank_correlation

KnownObjectives: TypeAlias = Callable[[Genes], Floats]
"""Objectives that need no evaluation: from genomes (n, genes) to (n, objectives), nan where one has to be predicted."""

_LEAST_EVALUATED = 4
_TRUSTED = 0.75
_MOST_EXPLORATION = 0.5
_RECENT = 24
_POOL = 150


@dataclass(frozen=True, slots=True)
class SurrogateReport:
    """How far the predictions of one batch could be trusted.

    Attributes:
        batch: Number of the batch, from 0.
        evaluations: Answered candidates after it.
        rank_correlation: Spearman correlation of predicted and evaluated error over the last batches; None before
            anything was predicted.
        exploration: Share of the batch that was chosen without the model.
    """

    batch: int
    evaluations: int
    rank_correlation: float | None
    exploration: float


@SEARCHERS.register("surrogate")
class SurrogateSearch:
    """NSGA-II on a surrogate, with real evaluations of the batch that promises the most hypervolume.

    The first batch is the seeds, without a prior also some random genomes. Then, batch by batch: a surrogate of every
    objective that is not known in advance is fitted to all evaluated genomes; an inner NSGA-II searches on its
    predictions, a little on their hopeful side; of what it finds, the new genomes with the greatest expected gain of
    hypervolume are evaluated. Where predicted and evaluated errors rank differently, a growing part of the batch is
    made without the model, by crossover and mutation of the front.

    Args:
        domain: The genomes.
        n_objectives: Number of objectives, all minimised; the first one is the error that ``prior`` predicts.
        seed: Seed of all random choices.
        population_size: Size of the first batch, if there are not more seeds; with a prior the seeds alone are enough.
        batch_size: Size of the others.
        evaluations: Budget of candidates, None for no limit.
        seeds: Genomes to propose first.
        prior: Additive model of the first objective, from probes of one group at a time.
        known: Objectives that need no evaluation, such as costs from a table.
        limits: Largest useful coordinate of the reference point (see ``ReferencePoint.derive``).
        inner_population: Population of the search on the surrogate.
        inner_generations: Its generations.
        rates: How often each operator is used.
        reference: Scale of the hypervolume; None: that of the first batch.
        suggestions: Genomes that the search on the surrogate starts from, besides the front.

    Raises:
        ConfigurationError: If a size is less than 1 or a seed does not fit the domain.
    """

    def __init__(
        self,
        domain: GenomeDomain,
        *,
        n_objectives: int,
        seed: int,
        population_size: int = 24,
        batch_size: int = 8,
        evaluations: int | None = None,
        seeds: Sequence[Genes] = (),
        prior: AdditiveModel | None = None,
        known: KnownObjectives | None = None,
        limits: Sequence[float | None] | None = None,
        inner_population: int = 60,
        inner_generations: int = 30,
        rates: VariationRates | None = None,
        reference: ReferencePoint | None = None,
        suggestions: Sequence[Genes] = (),
    ) -> None:
        sizes = {"population_size": population_size, "batch_size": batch_size, "inner_population": inner_population}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, but got {value}.")
        self._domain = domain
        self._ledger = Ledger(domain, evaluations)
        self._seeds = stacked(seeds, domain)
        self._sizes = sizes
        self._inner_generations = inner_generations
        self._rates = rates or VariationRates()
        self._rng = np.random.default_rng(seed)
        self._prior, self._known, self._limits = prior, known, limits
        self._features = GeneFeatures.of(domain, prior)
        self._genomes = np.empty((0, domain.n_genes), dtype=np.int64)
        self._objectives = np.empty((0, n_objectives))
        self._violation, self._margin = np.empty(0), np.empty(0)
        self._reference, self._suggestions = reference, list(suggestions)
        self._rivals, self._promise = np.empty((0, n_objectives)), 0.0
        self._expected: Floats | None = None
        self._pairs: list[tuple[float, float]] = []
        self._exploration = 1.0
        self._reports: list[SurrogateReport] = []

    @property
    def reports(self) -> tuple[SurrogateReport, ...]:
        """One report for each answered batch."""
        return tuple(self._reports)

    def ask(self) -> list[Candidate]:
        """The next batch; see ``Searcher.ask``.

        Raises:
            RunError: If the last batch is not answered yet.
        """
        self._ledger.require_answered()
        if self._ledger.remaining == 0:
            return []
        with threadpool_limits(1, user_api="blas"):  # threads that wait for each other cost more than these matrices
            return self._ask()

    def _ask(self) -> list[Candidate]:
        taken: set[str] = set()
        genomes, wanted = self._ledger.fresh(self._seeds, taken), self._sizes["population_size"]
        if self._prior is not None and len(genomes) >= _LEAST_EVALUATED:
            wanted = len(genomes)
        self._expected = None
        usable = np.isfinite(self._violation)
        if len(self._genomes):
            wanted = self._sizes["batch_size"]
        if usable.sum() >= _LEAST_EVALUATED:
            models = _Models(self, usable)
            genomes = self._modelled(models, self._ledger.batch_size(wanted), taken)
        genomes += self._ledger.random_new(max(0, wanted - len(genomes)), self._rng, taken)
        batch = self._ledger.open(genomes[: self._ledger.batch_size(len(genomes))])
        if usable.sum() >= _LEAST_EVALUATED and batch:
            self._expected = models.error(np.array([candidate.genes for candidate in batch]))
        return batch

    def propose(self, rivals: Floats, *, most: int) -> tuple[list[Candidate], float]:
        """Ask for the next batch beside rivals; a batch that was proposed before and not answered is taken back.

        Args:
            rivals: Objectives of what others have found for the same front, shape (points, objectives).
            most: Candidates that may still be evaluated.

        Returns:
            The batch, and the hypervolume that each of its modelled candidates is expected to gain on average; inf
            while too few are evaluated to predict anything.
        """
        self._ledger.withdraw(most)
        self._rivals = rivals
        self._promise = np.inf if len(self._genomes) < _LEAST_EVALUATED else 0.0
        return self.ask(), self._promise

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Answer the last batch; see ``Searcher.tell``.

        Raises:
            RunError: If no batch is waiting, or the shapes do not fit it.
        """
        waiting = len(self._ledger.pending or ())
        answers = checked_answers(objectives, violations, candidates=waiting, n_objectives=self._objectives.shape[1])
        batch = self._ledger.close()
        self._keep(np.array([candidate.genes for candidate in batch]), answers)
        if self._reference is None and not answers.failed.all():
            self._reference = ReferencePoint.derive(answers.objectives[~answers.failed], limits=self._limits)
        correlation = None
        if self._expected is not None:
            usable = ~answers.failed
            self._pairs += zip(self._expected[usable].tolist(), answers.objectives[usable, 0].tolist(), strict=True)
            correlation = self._recent_correlation()
        self._reports.append(SurrogateReport(len(self._reports), len(self._genomes), correlation, self._exploration))

    def learn(self, genomes: Genes, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """Fit later models to what others have evaluated, too; see ``Learner.learn``.

        Raises:
            RunError: If a batch waits for its answers, or the shapes do not fit.
        """
        self._ledger.require_answered()
        answers = checked_answers(
            objectives, violations, candidates=len(genomes), n_objectives=self._objectives.shape[1]
        )
        self._ledger.evaluated_elsewhere.update(self._domain.phenotype(genes) for genes in genomes)
        self._keep(genomes, answers)

    def _recent_correlation(self) -> float:
        recent = np.array(self._pairs[-_RECENT:]).reshape(-1, 2)
        return rank_correlation(recent[:, 0], recent[:, 1])

    def _exploration_to(self, models: _Models) -> None:
        """Less trust, more exploration: from the recent batches, or from leaving one out while they are few."""
        trust = self._recent_correlation() if len(self._pairs) >= _RECENT else models.loo_rank_correlation
        self._exploration = float(np.clip(_TRUSTED - trust, 0.0, _MOST_EXPLORATION))

    def _modelled(self, models: _Models, wanted: int, taken: set[str]) -> list[Genes]:
        self._exploration_to(models)
        free = round(wanted * self._exploration)
        pool = self._pool(models)
        if not len(pool) or self._reference is None:
            return self._varied(free, taken)
        feasible = self._violation <= 0.0
        improvement = ExpectedImprovement(self._reference, np.vstack([self._objectives[feasible], self._rivals]))
        outcomes = np.stack([models.objectives(pool, node) for node in QUADRATURE_NODES], axis=1)
        chosen = improvement.choose(outcomes, models.chance(pool), wanted - free)
        self._promise = improvement.promised / max(wanted - free, 1)
        genomes = self._ledger.fresh(pool[chosen], taken)
        genomes += self._varied(free, taken)
        # Where nothing more is expected to be gained, the best ranked are as good as any.
        spare = self._ledger.fresh(pool[: wanted * 4], set(taken))[: wanted - len(genomes)]
        return genomes + self._ledger.fresh(spare, taken)

    def _pool(self, models: _Models) -> Genes:
        """New genomes that are best on the surrogate, first fronts first."""
        inner_domain = replace(self._domain, phenotype=lambda genes: genes.tobytes().hex())
        inner = Nsga2Search(
            inner_domain,
            n_objectives=self._objectives.shape[1],
            seed=int(self._rng.integers(2**31)),
            population_size=self._sizes["inner_population"],
            generations=self._inner_generations,
            seeds=[*self._front(), *self._suggestions],
            rates=self._rates,
        )
        genomes, predicted = [], []
        hope = -0.5 - self._exploration
        while batch := inner.ask():
            asked = np.array([candidate.genes for candidate in batch])
            objectives = models.objectives(asked, hope)
            impossible = models.chance(asked) < 0.05
            inner.tell(objectives, impossible.astype(np.float64))
            genomes.append(asked[~impossible])
            predicted.append(objectives[~impossible])
        return self._best_new(np.concatenate(genomes), np.concatenate(predicted))

    def _best_new(self, genomes: Genes, predicted: Floats) -> Genes:
        # Repaired genomes are equal where their phenotypes are, and cheaper to compare.
        seen = {genes.tobytes() for genes in self._genomes}
        new = [index for index, genes in enumerate(genomes) if genes.tobytes() not in seen]
        if not new:
            return genomes[:0]
        fronts = NonDominatedSorting().do(predicted[new], n_stop_if_ranked=_POOL)
        ranked = np.concatenate(fronts)[:_POOL]
        return np.asarray(genomes[np.array(new)[ranked]], dtype=np.int64)

    def _keep(self, genomes: Genes, answers: Answers) -> None:
        self._genomes = np.vstack([self._genomes, genomes])
        self._objectives = np.vstack([self._objectives, answers.objectives])
        self._violation = np.concatenate([self._violation, answers.violation])
        self._margin = np.concatenate([self._margin, answers.margin])

    def _front(self) -> Genes:
        """Genomes of the present front; of the least violated ones while nothing is feasible."""
        usable = np.isfinite(self._violation)
        best = self._violation[usable].min()
        kept = np.flatnonzero(usable & (self._violation <= max(best, 0.0)))
        first = NonDominatedSorting().do(self._objectives[kept], only_non_dominated_front=True)
        return np.asarray(self._genomes[kept[np.sort(first)]], dtype=np.int64)

    def _varied(self, count: int, taken: set[str]) -> list[Genes]:
        """New genomes by crossover and mutation of the front."""
        variation, front = Variation(self._domain, self._rates), self._front()
        genomes: list[Genes] = []
        for _ in range(20 * count):
            if len(genomes) >= count:
                break
            first, second = front[self._rng.integers(len(front), size=2)]
            child = variation.mutate(variation.cross(first, second, self._rng)[0], self._rng)
            genomes += self._ledger.fresh([self._domain.repair(child)], taken)
        return genomes


class _Models:
    """What is known and predicted of all objectives after the evaluations so far."""

    def __init__(self, search: SurrogateSearch, usable: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        self._known = search._known
        genomes, objectives = search._genomes[usable], search._objectives[usable]
        exact = np.full((1, objectives.shape[1]), np.nan) if self._known is None else self._known(genomes[:1])
        self._predicted = {
            axis: Surrogate(search._features, genomes, objectives[:, axis], prior=search._prior if axis == 0 else None)
            for axis in np.flatnonzero(np.isnan(exact[0])).tolist()
        }
        self._n_objectives = objectives.shape[1]
        margin = search._margin[usable]
        self._margin: Surrogate | None = None
        self._limit = 0.0
        if (margin > 0.0).any():
            self._margin = Surrogate(search._features, genomes, margin, scale=Scale(is_log=False, origin=0.0))
            if margin.min() == 0.0:  # room to spare was not told, so 0 stands for anything below it
                self._limit = 0.5 * float(margin[margin > 0.0].min())

    @property
    def loo_rank_correlation(self) -> float:
        """Of the error, or 1 if it is known."""
        return self._predicted[0].loo_rank_correlation if 0 in self._predicted else 1.0

    def objectives(self, genomes: Genes, deviations: float) -> Floats:
        """Shape (genomes, objectives), what is predicted at so many standard deviations above the mean."""
        shape = (len(genomes), self._n_objectives)
        values = np.full(shape, np.nan) if self._known is None else np.array(self._known(genomes), dtype=np.float64)
        for axis, model in self._predicted.items():
            values[:, axis] = model.predict(genomes).value(deviations)
        return values

    def error(self, genomes: Genes) -> Floats:
        """Expected first objective, shape (genomes,)."""
        return np.asarray(self.objectives(genomes, 0.0)[:, 0], dtype=np.float64)

    def chance(self, genomes: Genes) -> Floats:
        """Probability that the constraints are fulfilled, shape (genomes,)."""
        if self._margin is None:
            return np.ones(len(genomes))
        prediction: Prediction = self._margin.predict(genomes)
        return np.round(prediction.probability_below(self._limit), 9)
