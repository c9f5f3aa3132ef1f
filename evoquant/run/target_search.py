"""The search for one device of a run: its searcher, its archive, its baselines, and what it has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evoquant.config import Experiment
from evoquant.evaluate import ProbeTable
from evoquant.run.comparison import known_comparison, run_comparison
from evoquant.run.evaluations import Evaluations, OnRecord
from evoquant.run.exploration import Answered, Exploration, Judged
from evoquant.run.objectives import plan_name
from evoquant.run.points import knee_of
from evoquant.run.searchers import Genes, SearcherFactory
from evoquant.run.targets import Target
from evoquant.run.verdict import verdict
from evoquant.search import ReferencePoint, Searcher, Termination, looks
from evoquant.types.front import Comparison, FrontDocument, ParetoPoint, TestedAccuracy


@dataclass
class Spent:
    """What all devices of a run have in common.

    Attributes:
        tested: Accuracies on the test images by phenotype.
        images: Forward passes of one image that the baselines and the probes made.
        seconds: Time of the run so far.
    """

    tested: dict[str, TestedAccuracy] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


class TargetSearch:
    """One device of a run and what was found for it.

    Args:
        experiment: The run, with the device's share of the evaluations.
        target: The device.
        evaluations: Evaluates plans.
        batches: Selection images of each batch.
        classes: For the published hybrid rule.
        spent: Shared with the other devices.
        provenance: Goes into the result as it is.
    """

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        evaluations: Evaluations,
        *,
        batches: Sequence[int],
        classes: Mapping[str, str],
        spent: Spent,
        provenance: Mapping[str, Any],
    ) -> None:
        self.target = target
        self.experiment = experiment
        self.judged = Judged(target.costs)
        self.exploration = Exploration(
            experiment, target.space, evaluations, self.judged, looks=looks(batches) if experiment.search.racing else ()
        )
        self.baselines: dict[str, str] = {}
        self.comparisons: list[Comparison] = []
        self.generation = 0
        self.probes: ProbeTable | None = None
        self._programmed: list[str] = []
        self._evaluations, self._classes = evaluations, classes
        self._spent, self._provenance = spent, provenance

    @cached_property
    def factory(self) -> SearcherFactory:
        """Makes the searches; not before the probes are known."""
        return SearcherFactory(self.experiment, self.target.space, self.target.costs, self._classes, self.probes)

    @cached_property
    def searcher(self) -> Searcher:
        """The search of the run; its seeds are those that no other device has had evaluated for it before."""
        structured, programmed = self.factory.seeds()
        space = self.target.space
        self._programmed = [space.phenotype_hash(genes) for genes in programmed]
        seeds: list[Genes] = [
            genes for genes in (*structured, *programmed) if space.phenotype_hash(genes) not in self.exploration.seen
        ]
        return self.factory.searcher(self.experiment.search.algorithm, seeds)

    async def step(self, on_record: OnRecord) -> list[Answered]:
        """Evaluate the next batch; what was evaluated, empty if nothing is left to propose."""
        answered = await self.exploration.step(self.searcher, on_record=on_record)
        self.generation += bool(answered)
        return answered

    def limit_reached(self) -> bool:
        """Whether the budget of evaluations, of time, or of generations without progress is spent."""
        search, archive = self.experiment.search, self.exploration.archive
        limits = Termination(minutes=search.minutes, patience=search.plateau_generations)
        return bool(
            limits.reason(
                evaluations=archive.evaluations,
                seconds=self._spent.seconds,
                hypervolumes=[value for _, value in archive.history],
            )
        )

    @property
    def rank_correlation(self) -> float | None:
        """Of predicted and evaluated error over the last candidates; None where nothing is predicted."""
        reports = getattr(self.searcher, "reports", ())
        return reports[-1].rank_correlation if reports else None

    def compare_what_is_known(self, images: int) -> None:
        """Comparisons that cost nothing: the presets, and the seeds of integer programming.

        Args:
            images: Images of one evaluation.
        """
        keys = {"presets": (list(self.baselines.values()), 0)}
        if self._programmed:
            keys["seeds"] = (self._programmed, self._probe_images)
        for name, (phenotypes, other_images) in keys.items():
            self.comparisons.append(
                known_comparison(
                    name,
                    phenotypes,
                    judged=self.judged,
                    experiment=self.experiment,
                    reference=self._reference,
                    images=images,
                    other_images=other_images,
                )
            )

    async def compare(self, name: str, images: int) -> None:
        """Let another search spend as many forward passes as went into this front and its probes."""
        spent = self.exploration.images + self.exploration.offered_images + self._probe_images
        self.comparisons.append(
            await run_comparison(
                name,
                self.factory,
                evaluations=self._evaluations,
                judged=self.judged,
                reference=self._reference,
                images=images,
                spent=spent,
            )
        )

    def document(self, status: str, *, images: int) -> FrontDocument:
        """Everything that is known so far.

        Args:
            status: ``interrupted``, or ``done`` if the run has come to its end.
            images: Forward passes of one image that the whole run has made.
        """
        archive, names, space = self.exploration.archive, self.experiment.objectives, self.target.space
        members = archive.front or tuple(entry for entry in (archive.best_infeasible,) if entry is not None)
        front = tuple(
            self._point(f"p{number:02d}", plan_name(self.judged.plans[member.key], space.graph), member.key)
            for number, member in enumerate(members, start=1)
        )
        baselines = tuple(self._point(name, name, key) for name, key in self.baselines.items())
        chosen = knee_of(front, baselines, names)
        reference = archive.reference
        return FrontDocument(
            model=space.graph.model,
            device=self.target.device.name,
            status="infeasible" if status == "done" and not archive.front else status,
            objectives=names,
            front=front,
            baselines=baselines,
            knee=chosen,
            hypervolume=0.0 if reference is None else archive.hypervolume,
            reference_point={} if reference is None else dict(zip(names, reference.point, strict=True)),
            hypervolume_history=archive.history,
            evaluated=tuple(self.exploration.evaluated),
            evaluations=archive.evaluations,
            failures=archive.failures,
            stopped=archive.stopped,
            images_evaluated=images,
            seconds=self._spent.seconds,
            verdict=verdict(front, baselines, names, chosen, reference, self.comparisons),
            provenance=self._provenance,
            comparisons=tuple(self.comparisons),
        )

    @property
    def _reference(self) -> ReferencePoint:
        reference = self.exploration.archive.reference
        assert reference is not None, "set by the first batch"
        return reference

    @property
    def _probe_images(self) -> int:
        return 0 if self.probes is None else round(self.probes.passes)

    def _point(self, identifier: str, name: str, key: str) -> ParetoPoint:
        return ParetoPoint(
            identifier, name, self.judged.values[key], self.judged.plans[key], self._spent.tested.get(key)
        )
