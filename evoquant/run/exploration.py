"""One search at work: candidates are asked for, evaluated, and told what they are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evoquant.config import Experiment
from evoquant.errors import PrecisionError
from evoquant.evaluate import IMAGE_SCORE, Accuracy, Plan, Scores, Standing
from evoquant.hardware import CostModel, Costs
from evoquant.run.evaluations import Evaluations, OnRecord
from evoquant.run.journal import Record
from evoquant.run.objectives import figures, reference_limits, shift, vector, violations
from evoquant.run.race import Race
from evoquant.search import Candidate, Evaluated, Learner, ParetoArchive, ReferencePoint, Searcher
from evoquant.space import SearchSpace

Genes = NDArray[np.int64]
Floats = NDArray[np.float64]
Answered = tuple[Plan, Record]
"""A plan with its finished evaluation."""
Judgement = tuple[Genes, Plan, Record]
"""The same with its genome."""


@dataclass
class Judged:
    """The figures of every plan of a run that was evaluated on the selection images, by phenotype.

    Attributes:
        costs: Costs of plans.
        standing: Where the architecture stands, where several share a front; None: there is only one.
        values: The figures.
        plans: The plans.
    """

    costs: CostModel
    standing: Standing | None = None
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)

    def take(self, plan: Plan, record: Record) -> dict[str, float] | None:
        """The figures of an evaluated plan, kept; None if it failed or was stopped."""
        if record.result is None or record.status != "done":
            return None
        if record.phenotype not in self.values:
            self.values[record.phenotype] = self._figures(record, self.costs.costs(plan))
            self.plans[record.phenotype] = plan
        return self.values[record.phenotype]

    def _figures(self, record: Record, costs: Costs) -> dict[str, float]:
        accuracy = Accuracy.from_dict(record.result or {})
        if self.standing is None:
            return figures(accuracy, costs)
        beside = self.standing.judged(np.frombuffer(record.scores, dtype=IMAGE_SCORE))
        return figures(beside, costs) | {"quantization_kl": accuracy.kl}


class Exploration:
    """A search with its archive.

    Args:
        experiment: What is minimised, and within which limits.
        space: What is searched.
        evaluations: Evaluates plans.
        judged: Figures of all plans of the run.
        archive: Shared with the searches for other architectures of the front; None: one of its own.
        reference: Scale of the hypervolume of its own archive; None takes that of the first batch.
        looks: After how many images a candidate may be stopped; none: it never is. The first batch is evaluated on all
            images in any case.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: SearchSpace,
        evaluations: Evaluations,
        judged: Judged,
        *,
        archive: ParetoArchive | None = None,
        reference: ReferencePoint | None = None,
        looks: Sequence[int] = (),
    ) -> None:
        self._experiment, self._space = experiment, space
        self._evaluations, self._judged = evaluations, judged
        self.archive = ParetoArchive(reference) if archive is None else archive
        self.shift = shift(judged.standing, experiment.objectives)
        self.evaluated: list[dict[str, float]] = []
        self.seen: set[str] = set()
        self.images_of: Counter[str] = Counter()
        self.seconds = 0.0
        self.offered_images = 0
        self._looks = tuple(looks)
        self._scores: dict[str, Scores] = {}
        self._early: list[Evaluated] = []
        self._offers: list[tuple[Genes, Floats, Floats]] = []
        self._batches = 0

    @property
    def images(self) -> int:
        """Images that its own candidates were evaluated on."""
        return self.images_of.total()

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
        while await self.step(searcher, on_record=on_record):
            if on_batch is not None and not on_batch(self._batches):
                return

    async def step(
        self,
        searcher: Searcher,
        *,
        proposed: Sequence[Candidate] | None = None,
        on_record: OnRecord | None = None,
    ) -> list[Answered]:
        """Evaluate the next batch and tell the searcher; what was evaluated, empty at the end of the search.

        A searcher that can learn is first told what was offered since its last batch. What a searcher is told is of
        its own architecture alone: objectives without the offset.

        Args:
            searcher: What proposes candidates.
            proposed: The batch that it has proposed already; None: it is asked for one.
            on_record: Told of each evaluation.
        """
        if self._batches and self._offers and isinstance(searcher, Learner):
            genomes, objectives, excess = (np.array(column) for column in zip(*self._offers, strict=True))
            searcher.learn(genomes, objectives, excess if excess.size else None)
            self._offers.clear()
        candidates = searcher.ask() if proposed is None else proposed
        if not candidates:
            return []
        plans = [self._space.decode(candidate.genes) for candidate in candidates]
        race = self._race()
        records = await self._evaluations.of(plans, split="selection", on_record=on_record, race=race)
        genes = [candidate.genes for candidate in candidates]
        objectives, excess = self._take(list(zip(genes, plans, records, strict=True)), race)
        searcher.tell(objectives - self.shift, excess if excess.size else None)
        self._batches += 1
        return list(zip(plans, records, strict=True))

    def _race(self) -> Race | None:
        """Against the front as it is now; None in the first batch, and where nothing is known to race against."""
        front, objectives = self.archive.front, self._experiment.objectives
        if not self._batches or not self._looks or not front:
            return None
        self._scores = {entry.key: self._scores[entry.key] for entry in front}
        return Race(self._looks, objectives=objectives, costs=self._judged.costs, front=front, scores=self._scores)

    def offer(self, answered: Sequence[Answered]) -> None:
        """Take in what another search has evaluated, as far as this space has it: that costs no evaluation.

        What was stopped there is not known to be dominated here, and is left out.
        """
        found: list[Judgement] = []
        for plan, record in answered:
            if record.phenotype in self.seen or record.status == "stopped":
                continue
            try:
                found.append((self._space.encode(plan), plan, record))
            except PrecisionError:
                continue
            if record.result is not None:
                self.offered_images += int(record.result["images"])
        entries, objectives, excess = self._judge(found)
        self._offers += zip((genes for genes, *_ in found), objectives, excess, strict=True)
        if self.archive.reference is None:
            self._early += entries
        else:
            self.archive.add(entries)

    def _take(self, answered: Sequence[Judgement], race: Race | None) -> tuple[Floats, Floats]:
        """Put own candidates into the archive; objectives and constraint violations in their order."""
        records = [record for _, _, record in answered]
        new = [record.phenotype not in self.seen for record in records]
        for record, is_new in zip(records, new, strict=True):
            if is_new and record.result is not None:
                self.images_of[record.phenotype] = int(record.result["images"])
                self.seconds += record.seconds
        entries, objectives, excess = self._judge(answered, race)
        if self.archive.reference is None:
            early = [entry.objectives for entry in self._early if not entry.has_failed]
            values = np.concatenate([objectives, np.array(early)]) if early else objectives
            self.archive.freeze(ReferencePoint.derive(values, limits=reference_limits(self._experiment.objectives)))
            self.archive.add(self._early)
            self._early.clear()
        self.archive.add(entry for entry, is_new in zip(entries, new, strict=True) if is_new)
        return objectives, excess

    def _judge(self, answered: Sequence[Judgement], race: Race | None = None) -> tuple[list[Evaluated], Floats, Floats]:
        """Entries for the archive, objectives and constraint violations; nan where an evaluation failed."""
        names, limits = self._experiment.objectives, self._experiment.constraints.limits
        objectives = np.full((len(answered), len(names)), np.nan)
        excess = np.zeros((len(answered), len(limits)))
        entries = []
        for row, (genes, plan, record) in enumerate(answered):
            values = self._values(plan, record, race)
            if values is not None:
                objectives[row] = vector(values, names)
                excess[row] = violations(values, limits)
                if record.phenotype not in self.seen and record.status == "done":
                    self.evaluated.append({name: values[name] for name in (*names, "accuracy_drop_pp")})
                if record.status == "done" and self._looks:
                    self._scores[record.phenotype] = np.frombuffer(record.scores, dtype=IMAGE_SCORE)
            self.seen.add(record.phenotype)
            violation = float(np.maximum(excess[row], 0.0).sum())
            found = () if values is None else vector(values, names)
            entries.append(
                Evaluated(
                    len(self.seen) - 1,
                    record.phenotype,
                    genes,
                    found,
                    violation,
                    is_stopped=record.status == "stopped",
                )
            )
        return entries, objectives, excess

    def _values(self, plan: Plan, record: Record, race: Race | None) -> dict[str, float] | None:
        """The figures of a plan, estimated if it was stopped; None if it failed."""
        if record.status != "stopped" or record.result is None or race is None:
            return self._judged.take(plan, record)
        prefix = figures(Accuracy.from_dict(record.result), self._judged.costs.costs(plan))
        return prefix | (race.estimates(plan, np.frombuffer(record.scores, dtype=IMAGE_SCORE)) or {})
