"""One front of a run: the searches that fill it, what it is compared with, and what it has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from evoquant.config import Experiment
from evoquant.run.comparison import known_comparison, run_comparison
from evoquant.run.contest import Contender, most_promising
from evoquant.run.evaluations import OnRecord
from evoquant.run.exploration import Answered
from evoquant.run.objectives import plan_name, reference_limits, vector
from evoquant.run.points import knee_of
from evoquant.run.target_search import Spent, TargetSearch
from evoquant.run.verdict import verdict
from evoquant.search import ParetoArchive, ReferencePoint, Termination
from evoquant.types.front import Comparison, FloatAccuracy, FrontArchitecture, FrontDocument, ParetoPoint

FLOAT = "fp32"
"""The preset whose costs bound a front of several architectures."""


class FrontSearch:
    """One front of a run.

    Args:
        experiment: The run, with the share of this front of its evaluations.
        searches: What fills it: one search, or contenders with one archive.
        spent: Shared with the other fronts.
        provenance: Goes into the result as it is.
    """

    def __init__(
        self,
        experiment: Experiment,
        searches: Sequence[TargetSearch],
        *,
        spent: Spent,
        provenance: Mapping[str, Any],
    ) -> None:
        self.searches = searches
        self.contenders = [search for search in searches if isinstance(search, Contender)]
        self.comparisons: list[Comparison] = []
        self._costs: list[tuple[int, float]] = []
        self.float_on_test: Mapping[str, FloatAccuracy] = {}
        self._experiment = experiment
        self._spent, self._provenance = spent, provenance

    @property
    def archive(self) -> ParetoArchive:
        """Everything that was evaluated for it."""
        return self.searches[0].exploration.archive

    @property
    def generation(self) -> int:
        """Batches so far."""
        return sum(search.generation for search in self.searches)

    def freeze_scale(self) -> None:
        """Fix the scale of a front of several architectures: that of their presets, all of which are evaluated.

        It reaches to the costs of the largest one in floating point. In a box that ends at those of quantized plans the
        largest architecture would lie at the edge and promise nothing, however accurate it is. A single search takes
        the scale of its first batch.
        """
        if not self.contenders:
            return
        names = self._experiment.objectives
        values = [
            vector(search.judged.values[key], names) for search in self.contenders for key in search.baselines.values()
        ]
        shifts = [search.exploration.shift for search in self.contenders]
        limits = [
            None if limit is None else limit + max(float(shift[axis]) for shift in shifts)
            for axis, limit in enumerate(reference_limits(names))
        ]
        self.archive.freeze(ReferencePoint.derive(values, limits=limits))

    async def step(self, on_record: OnRecord) -> tuple[TargetSearch, list[Answered]]:
        """Evaluate the next batch; of which search, and what was evaluated: nothing if nothing is left to propose."""
        if not self.contenders:
            return self.searches[0], await self.searches[0].step(on_record)
        left = self._experiment.search.evaluations - self.archive.evaluations
        chosen = most_promising(self.contenders, left)
        return chosen or self.searches[0], [] if chosen is None else await chosen.step(on_record)

    def record(self) -> float:
        """Note the present hypervolume, and what it took, in the history, and return it."""
        explorations = [search.exploration for search in self.searches]
        images = sum(exploration.images + exploration.offered_images for exploration in explorations)
        images += sum(search.probe_images for search in self.searches)
        self._costs.append((images, sum(exploration.seconds for exploration in explorations)))
        return self.archive.record()

    def limit_reached(self) -> bool:
        """Whether the budget of evaluations, of time, or of generations without progress is spent."""
        search = self._experiment.search
        limits = Termination(minutes=search.minutes, patience=search.plateau_generations)
        return bool(
            limits.reason(
                evaluations=self.archive.evaluations,
                seconds=self._spent.seconds,
                hypervolumes=[value for _, value in self.archive.history],
            )
        )

    def compare_what_is_known(self, images: int) -> None:
        """Comparisons that cost nothing: the presets, the seeds of integer programming, each architecture alone.

        Args:
            images: Images of one evaluation.
        """
        presets = list(chain.from_iterable(map(self._compared_presets, self.searches)))
        known: dict[str, tuple[Sequence[str], int]] = {"presets": (presets, 0)}
        for search in self.searches:
            if search.programmed:
                known["seeds"] = (search.programmed, search.probe_images)
        for contender in self.contenders:
            found = [*contender.exploration.images_of, *self._compared_presets(contender)]
            known[f"{contender.name} alone"] = (found, contender.probe_images)
        values = {key: figures for search in self.searches for key, figures in search.judged.values.items()}
        self.comparisons += [
            known_comparison(
                name,
                phenotypes,
                values=values,
                experiment=self._experiment,
                reference=self._reference,
                images=images,
                other_images=other_images,
            )
            for name, (phenotypes, other_images) in known.items()
        ]

    def _compared_presets(self, search: TargetSearch) -> list[str]:
        """The presets of a search; of contenders only the quantized ones, as floating point is their common scale."""
        return [key for name, key in search.baselines.items() if name != FLOAT or not self.contenders]

    async def compare(self, name: str, images: int) -> None:
        """Let another search spend as many forward passes as went into this front and its probes."""
        (search,) = self.searches
        exploration = search.exploration
        self.comparisons.append(
            await run_comparison(
                name,
                search.factory,
                evaluations=search.evaluations,
                judged=search.judged,
                reference=self._reference,
                images=images,
                spent=exploration.images + exploration.offered_images + search.probe_images,
            )
        )

    def document(self, status: str, *, images: int) -> FrontDocument:
        """Everything that is known so far.

        Args:
            status: ``interrupted``, or ``done`` if the run has come to its end.
            images: Forward passes of one image that the whole run has made.
        """
        archive, names = self.archive, self._experiment.objectives
        members = archive.front or tuple(entry for entry in (archive.best_infeasible,) if entry is not None)
        front = tuple(self._member(f"p{number:02d}", entry.key) for number, entry in enumerate(members, start=1))
        baselines = tuple(chain.from_iterable(self._baselines(search) for search in self.searches))
        chosen = knee_of(front, baselines, names)
        reference = archive.reference
        return FrontDocument(
            model=" + ".join(dict.fromkeys(search.target.space.graph.model for search in self.searches)),
            device=self.searches[0].target.device.name,
            status="infeasible" if status == "done" and not archive.front else status,
            objectives=names,
            front=front,
            baselines=baselines,
            knee=chosen,
            hypervolume=0.0 if reference is None else archive.hypervolume,
            reference_point={} if reference is None else dict(zip(names, reference.point, strict=True)),
            hypervolume_history=archive.history,
            hypervolume_images=tuple(images for images, _ in self._costs),
            hypervolume_seconds=tuple(seconds for _, seconds in self._costs),
            evaluated=tuple(chain.from_iterable(search.exploration.evaluated for search in self.searches)),
            evaluations=archive.evaluations,
            failures=archive.failures,
            stopped=archive.stopped,
            images_evaluated=images,
            seconds=self._spent.seconds,
            verdict=verdict(front, baselines, names, chosen, reference, self.comparisons),
            provenance=self._provenance,
            comparisons=tuple(self.comparisons),
            architectures=tuple(self._architecture(contender) for contender in self.contenders),
        )

    @property
    def _reference(self) -> ReferencePoint:
        reference = self.archive.reference
        assert reference is not None, "set by the first batch"
        return reference

    def _member(self, identifier: str, key: str) -> ParetoPoint:
        search = next(search for search in self.searches if key in search.judged.plans)
        return self._point(search, identifier, plan_name(search.judged.plans[key], search.target.space.graph), key)

    def _baselines(self, search: TargetSearch) -> list[ParetoPoint]:
        prefix = f"{search.name}." if isinstance(search, Contender) and not search.standing.is_reference else ""
        return [self._point(search, f"{prefix}{name}", name, key) for name, key in search.baselines.items()]

    def _point(self, search: TargetSearch, identifier: str, name: str, key: str) -> ParetoPoint:
        architecture = search.name if isinstance(search, Contender) else None
        return ParetoPoint(
            identifier,
            name if architecture is None else f"{architecture} {name}",
            search.judged.values[key],
            search.judged.plans[key],
            self._spent.tested.get(key),
            architecture,
        )

    def _architecture(self, contender: Contender) -> FrontArchitecture:
        graph = contender.target.space.graph
        return FrontArchitecture(
            contender.name,
            graph.model,
            graph.input_shape[-1],
            len(contender.exploration.seen),
            contender.standing.own,
            self.float_on_test.get(contender.name),
        )
