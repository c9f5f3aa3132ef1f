"""From an experiment to its search: seeds, prior knowledge, known costs, and the algorithm by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evoquant.config import Experiment
from evoquant.evaluate import ProbeTable
from evoquant.hardware import CostModel, CostTable
from evoquant.run.objectives import EVALUATED, cost_figures, reference_limits
from evoquant.search import (
    SEARCHERS,
    AdditiveModel,
    GenomeDomain,
    ReferencePoint,
    Searcher,
    SurrogateSearch,
    VariationRates,
    choice_indices,
    milp_seeds,
)
from evoquant.space import UNIFORM_PRESETS, Plan, SearchSpace, structured_seeds, uniform_plan

Genes = NDArray[np.int64]
Floats = NDArray[np.float64]

LADDER = ((4, 4), (4, 8), (6, 6), (8, 8))
"""Uniform plans that the greedy search descends, coarsest first."""

_BALANCED = "balanced"
"""The cost that weighs all costs alike, each as a share of its range."""


class KnownCosts:
    """The objectives of genomes that need no evaluation.

    Args:
        domain: The genomes.
        space: The space that they are of.
        costs: Costs of plans.
        objectives: Names of the objectives.
    """

    def __init__(self, domain: GenomeDomain, space: SearchSpace, costs: CostModel, objectives: Sequence[str]) -> None:
        self._domain, self._space, self._costs, self._objectives = domain, space, costs, objectives
        self._table = CostTable(costs, [space.choice_plans(position) for position in range(len(space.groups))])
        self._known: dict[bytes, list[float]] = {}

    def __call__(self, genomes: Genes) -> Floats:
        """Shape (genomes, objectives), nan where an objective has to be evaluated."""
        if not self._table.is_exact:
            return np.array([self._of(genes) for genes in np.atleast_2d(genomes)], dtype=np.float64)
        values = self._table(choice_indices(self._domain, np.atleast_2d(genomes)))
        unknown = np.full(len(np.atleast_2d(genomes)), np.nan)
        return np.stack([values.get(name, unknown) for name in self._objectives], axis=1)

    def _of(self, genes: Genes) -> list[float]:
        """Of one genome where neighbours matter, kept once computed."""
        key = genes.tobytes()
        if key not in self._known:
            values = cost_figures(self._costs.costs(self._space.decode(genes)))
            self._known[key] = [values.get(name, np.nan) for name in self._objectives]
        return self._known[key]


@dataclass(frozen=True)
class SearcherFactory:
    """Makes the searches of one run.

    Attributes:
        experiment: The run.
        space: What is searched.
        costs: Costs of plans.
        classes: Classes of operations for the published rule.
        probes: What each choice adds to the divergence; None where it was not measured.
        warm: Plans of an earlier run, which join the seeds of the structure.
    """

    experiment: Experiment
    space: SearchSpace
    costs: CostModel
    classes: Mapping[str, str]
    probes: ProbeTable | None = None
    warm: Sequence[Plan] = ()

    @cached_property
    def domain(self) -> GenomeDomain:
        """The genomes."""
        return GenomeDomain.of_space(self.space)

    @cached_property
    def prior(self) -> AdditiveModel | None:
        """The additive model of the divergence."""
        if self.probes is None:
            return None
        return AdditiveModel(self.domain, tuple(np.array(values, dtype=np.float64) for values in self.probes.errors))

    @cached_property
    def known(self) -> KnownCosts:
        """Objectives that need no evaluation."""
        return KnownCosts(self.domain, self.space, self.costs, self.experiment.objectives)

    @cached_property
    def cost_tables(self) -> dict[str, tuple[Floats, ...]]:
        """For each cost among the objectives what each choice of each group adds to it, from the uniform 8-bit plan."""
        base = self.space.nearest(uniform_plan(self.space.graph, 8, 8))
        start = self.known(base)[0]
        added = []
        for position, choices in enumerate(self.domain.choices):
            changed = np.repeat(base[None], len(choices), axis=0)
            changed.reshape(len(choices), self.domain.n_groups, -1)[:, position] = choices
            added.append(self.known(changed) - start)
        names = self.experiment.objectives
        return {
            name: tuple(values[:, axis] for values in added) for axis, name in enumerate(names) if name not in EVALUATED
        }

    def programmed(self, budgets: int) -> list[tuple[str, Genes]]:
        """Named genomes by integer programming: so many budgets of each cost, and of all of them together."""
        if self.prior is None or budgets == 0 or not self.cost_tables:
            return []
        tables = dict(self.cost_tables)
        if len(tables) > 1:
            ranges = {name: sum(float(np.ptp(values)) for values in table) or 1.0 for name, table in tables.items()}
            tables[_BALANCED] = tuple(
                np.sum([table[group] / ranges[name] for name, table in self.cost_tables.items()], axis=0)
                for group in range(self.domain.n_groups)
            )
        return milp_seeds(self.prior, tables, budgets=budgets)

    @cached_property
    def structured(self) -> list[Genes]:
        """Seeds that need no probes: uniform ones, those of an earlier run, and others that the structure suggests."""
        named = structured_seeds(self.space, classes=self.classes)
        uniform = [genes for name, genes in named if name in UNIFORM_PRESETS]
        others = [genes for name, genes in named if name not in UNIFORM_PRESETS]
        return [*uniform, *(self.space.nearest(plan) for plan in self.warm), *others]

    @cached_property
    def programs(self) -> list[Genes]:
        """Seeds of integer programming, of as many budgets as the experiment names."""
        return [genes for _, genes in self.programmed(self.experiment.search.seed_budgets)]

    def seeds(self) -> tuple[list[Genes], list[Genes]]:
        """The seeds to evaluate: those that need no probes, and those of integer programming.

        Together they take at most half of the budget. Where that is not enough for all, each kind has half of the room:
        the first ones of the structure, and programs whose budgets lie evenly.
        """
        structured, programmed = self.structured, self.programs
        if not programmed:
            return structured, []
        room = max(1, self.experiment.search.evaluations // 2)
        structured = structured[: max(room // 2, room - len(programmed))]
        kept = np.linspace(0, len(programmed) - 1, min(len(programmed), room - len(structured))).round().astype(int)
        return structured, [programmed[index] for index in kept.tolist()]

    def baseline(self, name: str, evaluations: int) -> Searcher:
        """A search to compare with: without what the probes of sensitivity tell, unless that is all it is."""
        if name == "milp":
            budgets = -(-evaluations // (len(self.cost_tables) + 1))
            seeds = [genes for _, genes in self.programmed(budgets)]
            return SEARCHERS["random"](
                self.domain,
                n_objectives=len(self.experiment.objectives),
                seed=self.experiment.search.seed,
                population_size=1,
                evaluations=max(1, min(evaluations, len({self.domain.phenotype(genes) for genes in seeds}))),
                seeds=seeds,
            )
        seeds = [genes for _, genes in structured_seeds(self.space, classes=self.classes)] if name == "nsga2" else []
        return self._made(name, seeds, evaluations)

    def contender(self, *, first: int, reference: ReferencePoint) -> SurrogateSearch:
        """The search for one of several architectures, which is told by ``propose`` how much it may evaluate.

        Its first batch are seeds of the structure alone; all others are suggested to the surrogate.

        Args:
            first: The most evaluations of the first batch.
            reference: Scale of the hypervolume for objectives without the offset of the architecture.
        """
        searcher = self._made(
            "surrogate",
            self.structured[:first],
            self.experiment.search.evaluations,
            population_size=1,
            reference=reference,
        )
        assert isinstance(searcher, SurrogateSearch)
        return searcher

    def searcher(self, name: str, seeds: Sequence[Genes]) -> Searcher:
        """The search of this name with the budget of the experiment."""
        return self._made(name, seeds, self.experiment.search.evaluations)

    def _made(self, name: str, seeds: Sequence[Genes], evaluations: int, **changes: object) -> Searcher:
        search, objectives = self.experiment.search, self.experiment.objectives
        rates = VariationRates(crossover=search.crossover_rate, mutation=search.mutation_rate)
        options: dict[str, object] = {}
        if name == "greedy":
            options["ladder"] = [self.space.nearest(uniform_plan(self.space.graph, *bits)) for bits in LADDER]
        else:
            options["population_size"] = search.population_size
        if name in ("nsga2", "surrogate"):
            options["rates"] = rates
        if name == "surrogate":
            options |= {
                "prior": self.prior if objectives[0] == "kl" else None,
                "known": self.known,
                "limits": reference_limits(objectives),
                "suggestions": [*self.structured, *self.programs],
            }
        return SEARCHERS[name](
            self.domain,
            n_objectives=len(objectives),
            seed=search.seed,
            evaluations=evaluations,
            seeds=seeds,
            **{**options, **changes},
        )
