"""One search at work: candidates are asked for, evaluated, and told what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evoquant.config import Experiment
from evoquant.evaluate import Accuracy, Plan
from evoquant.hardware import CostModel
from evoquant.run.evaluations import Evaluations, OnRecord
from evoquant.run.journal import Record
from evoquant.run.objectives import figures, reference_limits, vector, violations
from evoquant.search import Candidate, Evaluated, ParetoArchive, ReferencePoint, Searcher
from evoquant.space import SearchSpace


@dataclass
class Judged:
    """The figures of every plan of a run that was evaluated on the selection images, by phenotype."""

    costs: CostModel
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)

    def take(self, plan: Plan, record: Record) -> dict[str, float] | None:
        """The figures of an evaluated plan, kept; None if it failed."""
        if record.result is None:
            return None
        if record.phenotype not in self.values:
            self.values[record.phenotype] = figures(Accuracy.from_dict(record.result), self.costs.costs(plan))
            self.plans[record.phenotype] = plan
        return self.values[record.phenotype]


class Exploration:
    """A search with its archive.

    Args:
        experiment: What is minimised, and within which limits.
        space: What is searched.
        evaluations: Evaluates plans.
        judged: Figures of all plans of the run.
        reference: Scale of the hypervolume; None takes that of the first batch.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: SearchSpace,
        evaluations: Evaluations,
        judged: Judged,
        *,
        reference: ReferencePoint | None = None,
    ) -> None:
        self._experiment, self._space = experiment, space
        self._evaluations, self._judged = evaluations, judged
        self.archive = ParetoArchive(reference)
        self.evaluated: list[dict[str, float]] = []
        self.images = 0

    async def run(
        self,
        searcher: Searcher,
        *,
        on_batch: Callable[[int], bool] | None = None,
        on_record: OnRecord | None = None,
    ) -> None:
        """Search until the searcher has nothing more to propose.

        Args:
            searcher: What proposes candidates.
            on_batch: Told the number of each answered batch, from 1; False ends the search.
            on_record: Told of each evaluation.
        """
        number = 0
        while candidates := searcher.ask():
            objectives, excess = await self._batch(candidates, on_record)
            searcher.tell(objectives, excess if excess.size else None)
            number += 1
            if on_batch is not None and not on_batch(number):
                return

    async def _batch(
        self, candidates: Sequence[Candidate], on_record: OnRecord | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate candidates and put them into the archive; objectives and constraint violations in their order."""
        plans = [self._space.decode(candidate.genes) for candidate in candidates]
        records = await self._evaluations.of(plans, split="selection", on_record=on_record)
        names, limits = self._experiment.objectives, self._experiment.constraints.limits
        objectives = np.full((len(candidates), len(names)), np.nan)
        excess = np.zeros((len(candidates), len(limits)))
        entries = []
        for row, (candidate, plan, record) in enumerate(zip(candidates, plans, records, strict=True)):
            values = self._judged.take(plan, record)
            if values is not None and record.result is not None:
                objectives[row] = vector(values, names)
                excess[row] = violations(values, limits)
                self.evaluated.append({name: values[name] for name in (*names, "accuracy_drop_pp")})
                self.images += int(record.result["images"])
            violation = float(np.maximum(excess[row], 0.0).sum())
            found = () if values is None else vector(values, names)
            entries.append(Evaluated(candidate.id, record.phenotype, candidate.genes, found, violation))
        if self.archive.reference is None:
            self.archive.freeze(ReferencePoint.derive(objectives, limits=reference_limits(names)))
        self.archive.add(entries)
        return objectives, excess
