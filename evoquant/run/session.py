"""One run: baselines, search, test of what was found; valid fronts on disk after every generation."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evoquant.config import Experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import (
    IMAGE_SCORE,
    SENSITIVITY_TABLES,
    Accuracy,
    Plan,
    ProbeTable,
    Standing,
    Workbench,
    standings,
)
from evoquant.run import events
from evoquant.run.contest import Contender
from evoquant.run.evaluations import Evaluations
from evoquant.run.front_file import read_front, write_front
from evoquant.run.front_search import FrontSearch
from evoquant.run.journal import Journal, Record
from evoquant.run.points import spread, tested
from evoquant.run.probing import probe_space, translated
from evoquant.run.promise import promise
from evoquant.run.target_search import Spent, TargetSearch
from evoquant.run.warm_start import earlier_plans
from evoquant.space import plan_hash
from evoquant.types import LayerQuantConfig
from evoquant.types.front import FrontDocument, ParetoPoint

PROBES = "sensitivities"
"""Name of the table of sensitivities in the journal; of several architectures with the name of its own behind it."""

WARM_START = "warm start"
"""Name of the plans of an earlier run in the journal, likewise."""


@dataclass(frozen=True)
class Subject:
    """One architecture of a run; of most runs the only one.

    Attributes:
        name: What the experiment calls it; None: it is the only one.
        bench: Model and images.
        evaluations: Evaluates its plans, for all of its searches.
    """

    name: str | None
    bench: Workbench
    evaluations: Evaluations


class Session:
    """One session of a run in its folder; the same run may have had sessions before.

    Several devices share the evaluations: their searches take turns, each with its share of the budget, and whatever
    one has evaluated is offered to the others. Several architectures share one front and its budget.

    Args:
        experiment: The run.
        subjects: Its architectures, at least one.
        fronts: One for each device, at least one.
        folders: Where each front is written.
        journal: The run's journal, claimed for this run.
        listener: Told what happens.
        spent: That of the fronts.
    """

    def __init__(
        self,
        experiment: Experiment,
        subjects: Sequence[Subject],
        fronts: Sequence[FrontSearch],
        *,
        folders: Sequence[Sequence[Path]],
        journal: Journal,
        listener: events.Listener,
        spent: Spent,
    ) -> None:
        self._experiment = experiment
        self._subjects, self._fronts, self._folders = subjects, fronts, folders
        self._journal = journal
        self._listener = listener
        self._spent = spent
        self._started = time.perf_counter()
        self._seconds_before = _seconds_before(folders[0][-1])
        self._resumed = sum(1 for record in journal if record.split == "selection")

    async def run(self) -> FrontDocument:
        """Evaluate the baselines, search, and test the fronts.

        If it is cancelled, the fronts found so far are on disk before ``asyncio.CancelledError`` goes on.

        Returns:
            The front of the first device, with those of all others.

        Raises:
            RunError: If the journal or a front cannot be written.
        """
        status = "interrupted"
        try:
            await self._evaluate_baselines()
            for subject in self._subjects:
                await self._probe(subject)
                await self._take_over(subject)
            self._listener(events.StageStarted("search", self._experiment.search.algorithm))
            await self._search()
            for name in self._experiment.search.baselines:
                self._listener(events.StageStarted("comparison", name))
                for front in self._fronts:
                    await front.compare(name, self._selection_images)
            self._listener(events.StageStarted("test"))
            await self._test()
            status = "done"
        finally:
            documents = [self._write(front, status) for front in self._fronts]
            statuses = {document.status for document in documents}
            self._listener(
                events.RunFinished("infeasible" if "infeasible" in statuses else status, self._session_seconds)
            )
        return replace(documents[0], other_targets=tuple(documents[1:]))

    @property
    def _searches(self) -> list[TargetSearch]:
        return [search for front in self._fronts for search in front.searches]

    def _of(self, subject: Subject) -> list[TargetSearch]:
        """The searches of one architecture, one for each device."""
        return [search for search in self._searches if search.evaluations is subject.evaluations]

    @property
    def _selection_images(self) -> int:
        return len(self._subjects[0].bench.evaluator.images("selection").labels)

    async def _evaluate_baselines(self) -> None:
        """The presets of every architecture; they fix the scale of a front that several share."""
        seconds: list[float] = []
        for subject in self._subjects:
            self._listener(events.StageStarted("baselines", subject.name or ""))
            seconds.append(min(await self._evaluate_presets(subject)))  # the others quantize weights as well
        for front in self._fronts:
            front.freeze_scale()
        self._listener(
            promise(
                self._experiment,
                seconds,
                operations=max(len(subject.bench.captured.graph.ops) for subject in self._subjects),
                images=self._selection_images,
                targets=len(self._fronts),
            )
        )

    async def _evaluate_presets(self, subject: Subject) -> list[float]:
        """The presets in the form that each device executes; equal ones are evaluated once, in so many seconds each."""
        plans: dict[str, Plan] = {}
        for search in self._of(subject):
            plans |= {plan_hash(plan): plan for plan in search.target.presets.values()}
            for name, reason in search.target.refused.items():
                self._listener(events.Noticed(f"No baseline {name}: {reason}"))
        answers = await subject.evaluations.of(list(plans.values()), split="selection")
        records = dict(zip(plans, answers, strict=True))
        for search in self._of(subject):
            for name, plan in search.target.presets.items():
                record = records[plan_hash(plan)]
                if search.judged.take(plan, record) is None:
                    self._listener(events.Noticed(f"The baseline {name} could not be evaluated: {record.reason}"))
                else:
                    search.baselines[name] = record.phenotype
        self._spent.images += sum(int(record.result["images"]) for record in answers if record.result is not None)
        return [record.seconds for record in answers]

    async def _probe(self, subject: Subject) -> None:
        """What each choice adds to the divergence, from the journal if an earlier session has measured it."""
        search = self._experiment.search
        if not search.sensitivity:
            return
        space = probe_space(subject.bench.experiment, [entry.target for entry in self._of(subject)])
        named = "" if subject.name is None else f"{subject.name}, "
        self._listener(events.StageStarted("sensitivity", f"{named}{len(space.groups)} groups"))
        note = PROBES if subject.name is None else f"{PROBES} {subject.name}"
        known = self._journal.kept(note)
        if known is None:
            stop = threading.Event()
            try:
                table = await asyncio.to_thread(
                    SENSITIVITY_TABLES[search.sensitivity_metric],
                    subject.bench.evaluator,
                    space,
                    images=search.sensitivity_images,
                    workers=self._experiment.evaluation.parallel_evaluations,
                    stop=stop,
                )
            except asyncio.CancelledError:
                stop.set()
                raise
            self._journal.keep(note, table.to_dict())
        else:
            table = ProbeTable.from_dict(known)
        ratio = table.passes / max(table.full_passes, 1)
        self._listener(events.SensitivityProbed(table.probes, table.images, ratio, known is not None))
        self._spent.images += round(table.passes)
        for entry in self._of(subject):
            entry.probes = translated(table, space, entry.target.space)

    async def _take_over(self, subject: Subject) -> None:
        """Plans of an earlier run, from the journal if an earlier session has read them."""
        run, graph = self._experiment.search.warm_start, subject.bench.captured.graph
        if run is None:
            return
        note = WARM_START if subject.name is None else f"{WARM_START} {subject.name}"
        known = self._journal.kept(note)
        if known is None:
            most = self._experiment.search.population_size
            plans = await asyncio.to_thread(earlier_plans, run, graph, most)
            known = {"plans": [{name: config.to_dict() for name, config in plan.items()} for plan in plans]}
            self._journal.keep(note, known)
        taken = [{name: LayerQuantConfig.from_dict(entry) for name, entry in plan.items()} for plan in known["plans"]]
        self._listener(events.Noticed(f"{len(taken)} plans of {run} join the seeds."))
        for entry in self._of(subject):
            entry.warm = taken

    async def _search(self) -> None:
        spaces = [search.target.space for search in self._fronts[0].searches]
        size_log10 = float(np.logaddexp.reduce([space.size_log10 * np.log(10) for space in spaces]) / np.log(10))
        self._listener(
            events.SearchStarted(
                sum(len(space.groups) for space in spaces),
                size_log10,
                self._experiment.search.evaluations,
                self._resumed,
            )
        )
        counter = itertools.count(1)

        def on_record(record: Record, is_known: bool) -> None:
            self._announce(record, next(counter), from_journal=is_known)

        active = list(self._fronts)
        while active:
            for front in list(active):
                search, answered = await front.step(on_record)
                for other in self._searches:
                    if answered and other is not search and other.evaluations is search.evaluations:
                        other.exploration.offer(answered)
                if answered:
                    self._close_generation(front, search)
                if not answered or front.limit_reached():
                    active.remove(front)
        for front in self._fronts:
            front.compare_what_is_known(self._selection_images)

    def _announce(self, record: Record, number: int, *, from_journal: bool) -> None:
        shown: dict[str, float] = {}
        if record.result is not None:
            shown = {name: record.result[source] for name, source in (("kl", "kl"), ("accuracy_drop_pp", "drop_pp"))}
        self._listener(
            events.CandidateEvaluated(number, record.phenotype, shown, record.reason, record.seconds, from_journal)
        )

    def _close_generation(self, front: FrontSearch, search: TargetSearch) -> None:
        hypervolume = front.record()
        document = self._write(front, "interrupted", is_draft=True)
        done = len(set().union(*(entry.exploration.seen for entry in self._searches)))
        self._listener(
            events.GenerationFinished(
                front.generation,
                front.archive.evaluations,
                len(front.archive.front),
                hypervolume,
                self._eta_seconds(done),
                document.front,
                search.rank_correlation,
                document.device if len(self._fronts) > 1 else "",
                search.name if isinstance(search, Contender) else "",
            )
        )

    def _eta_seconds(self, done: int) -> float | None:
        """Time to the end of the budget at the pace of this session; None while it repeats what the journal knows."""
        remaining, new = self._experiment.search.evaluations - done, done - self._resumed
        if remaining <= 0:
            return 0.0
        return self._session_seconds / new * remaining if new > 0 else None

    async def _test(self) -> None:
        """Judge members of every front and the baselines; each front has its share of the points to test."""
        wanted = self._experiment.evaluation.test_points
        share = None if wanted is None else -(-wanted // len(self._fronts))
        chosen: list[ParetoPoint] = []
        for front in self._fronts:
            document = self._document(front, "interrupted")
            chosen += [*spread(document, share), *document.baselines]
        standing = self._standing_on_test() if self._subjects[0].name is not None else {}
        for subject in self._subjects:
            points = [point for point in chosen if point.architecture == subject.name]
            await self._test_points(subject, points, standing.get(subject.name or ""))

    def _standing_on_test(self) -> Mapping[str, Standing]:
        """Where the architectures stand on the test images, beside the reference of the selection images."""
        (front,) = self._fronts
        reference = next(contender.name for contender in front.contenders if contender.standing.is_reference)
        images = {str(subject.name): subject.bench.evaluator.images("test") for subject in self._subjects}
        found = standings(images, reference=reference)
        front.float_on_test = {name: standing.own for name, standing in found.items()}
        return found

    async def _test_points(self, subject: Subject, points: Sequence[ParetoPoint], standing: Standing | None) -> None:
        named: dict[str, ParetoPoint] = {}
        for point in points:
            named.setdefault(subject.evaluations.key(point.plan), point)

        def on_record(record: Record, _from_journal: bool) -> None:
            if record.result is not None:
                accuracy = Accuracy.from_dict(record.result)
                if standing is not None:
                    accuracy = standing.judged(np.frombuffer(record.scores, dtype=IMAGE_SCORE))
                self._spent.tested[record.phenotype] = tested(accuracy)
                self._listener(events.Tested(named[record.phenotype].id, accuracy.top1, accuracy.images))

        await subject.evaluations.of([point.plan for point in named.values()], split="test", on_record=on_record)

    @property
    def _session_seconds(self) -> float:
        return time.perf_counter() - self._started

    def _write(self, front: FrontSearch, status: str, *, is_draft: bool = False) -> FrontDocument:
        document = self._document(front, status)
        for folder in self._folders[self._fronts.index(front)]:
            write_front(folder, document, draft=is_draft)
        return document

    def _document(self, front: FrontSearch, status: str) -> FrontDocument:
        self._spent.seconds = self._seconds_before + self._session_seconds
        images_of: Counter[str] = Counter()
        for entry in self._searches:
            images_of |= entry.exploration.images_of
        return front.document(status, images=self._spent.images + images_of.total())


def shares(experiment: Experiment, targets: int) -> list[Experiment]:
    """The experiment with the share of each of so many devices of its evaluations, at least one each."""
    search = experiment.search
    each, rest = divmod(search.evaluations, targets)
    counts = [max(1, each + (index < rest)) for index in range(targets)]
    return [
        experiment.model_copy(update={"search": search.model_copy(update={"evaluations": count})}) for count in counts
    ]


def _seconds_before(folder: Path) -> float:
    try:
        return read_front(folder).seconds
    except ConfigurationError:
        return 0.0
