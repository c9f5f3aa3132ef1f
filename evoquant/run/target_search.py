"""The search for one device of a run: its searcher, its baselines, and what it has evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from evoquant.config import Experiment
from evoquant.evaluate import ProbeTable, Standing
from evoquant.run.evaluations import Evaluations, OnRecord
from evoquant.run.exploration import Answered, Exploration, Judged
from evoquant.run.searchers import Genes, SearcherFactory
from evoquant.run.targets import Target
from evoquant.search import ParetoArchive, Searcher, looks
from evoquant.space import Plan
from evoquant.types.front import TestedAccuracy


@dataclass
class Spent:
    """What all searches of a run have in common.

    Attributes:
        tested: Accuracies on the test images by phenotype.
        images: Forward passes of one image that the baselines and the probes made.
        seconds: Time of the run so far.
    """

    tested: dict[str, TestedAccuracy] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


class TargetSearch:
    """One device of a run and what was evaluated for it.

    Args:
        experiment: The run, with the device's share of the evaluations.
        target: The device.
        evaluations: Evaluates plans.
        batches: Selection images of each batch.
        classes: For the published hybrid rule.
        standing: Where the architecture stands on the selection images; None: there is only one.
        archive: Shared with the searches for other architectures; None: one of its own.
    """

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        evaluations: Evaluations,
        *,
        batches: Sequence[int],
        classes: Mapping[str, str],
        standing: Standing | None = None,
        archive: ParetoArchive | None = None,
    ) -> None:
        self.target = target
        self.experiment = experiment
        self.evaluations = evaluations
        self.judged = Judged(target.costs, standing)
        self.exploration = Exploration(
            experiment,
            target.space,
            evaluations,
            self.judged,
            archive=archive,
            looks=looks(batches) if experiment.search.racing else (),
        )
        self.baselines: dict[str, str] = {}
        self.generation = 0
        self.probes: ProbeTable | None = None
        self.warm: Sequence[Plan] = ()
        self.programmed: list[str] = []
        self._classes = classes

    @cached_property
    def factory(self) -> SearcherFactory:
        """Makes the searches; not before the probes and the plans of an earlier run are known."""
        target = self.target
        return SearcherFactory(self.experiment, target.space, target.costs, self._classes, self.probes, self.warm)

    @cached_property
    def searcher(self) -> Searcher:
        """The search of the run; its seeds are those that no other device has had evaluated for it before."""
        structured, programmed = self.factory.seeds()
        self.programmed = [self._key(genes) for genes in programmed]
        seeds: list[Genes] = [
            genes for genes in (*structured, *programmed) if self._key(genes) not in self.exploration.seen
        ]
        return self.factory.searcher(self.experiment.search.algorithm, seeds)

    def _key(self, genes: Genes) -> str:
        return self.evaluations.key(self.target.space.decode(genes))

    async def step(self, on_record: OnRecord) -> list[Answered]:
        """Evaluate the next batch; what was evaluated, empty if nothing is left to propose."""
        answered = await self.exploration.step(self.searcher, on_record=on_record)
        self.generation += bool(answered)
        return answered

    @property
    def rank_correlation(self) -> float | None:
        """Of predicted and evaluated error over the last candidates; None where nothing is predicted."""
        reports = getattr(self.searcher, "reports", ())
        return reports[-1].rank_correlation if reports else None

    @property
    def probe_images(self) -> int:
        """Forward passes of one image that its probes made."""
        return 0 if self.probes is None else round(self.probes.passes)
