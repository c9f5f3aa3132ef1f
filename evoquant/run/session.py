"""One run: baselines, search, test of what was found; valid fronts on disk after every generation."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evoquant.config import Experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import SENSITIVITY_TABLES, Accuracy, ProbeTable, Workbench
from evoquant.run import events
from evoquant.run.evaluations import Evaluations
from evoquant.run.executors import Executor
from evoquant.run.front_file import read_front, write_front
from evoquant.run.journal import Journal, Record
from evoquant.run.points import spread, tested
from evoquant.run.probing import probe_space, translated
from evoquant.run.promise import promise
from evoquant.run.target_search import Spent, TargetSearch
from evoquant.run.targets import Target
from evoquant.space import Plan, plan_hash
from evoquant.types.front import FrontDocument

PROBES = "sensitivities"
"""Name of the table of sensitivities in the journal."""


class Session:
    """One session of a run in its folder; the same run may have had sessions before.

    Several devices share the evaluations: their searches take turns, each with its share of the budget, and whatever
    one has evaluated is offered to the others.

    Args:
        bench: Model and images.
        targets: The devices, at least one.
        folders: Where the front of each device is written.
        executor: Where evaluations run.
        journal: The run's journal, claimed for this run.
        listener: Told what happens.
        provenances: Goes into the result of each device as it is.
    """

    def __init__(
        self,
        bench: Workbench,
        targets: Sequence[Target],
        *,
        folders: Sequence[Sequence[Path]],
        executor: Executor,
        journal: Journal,
        listener: events.Listener,
        provenances: Sequence[Mapping[str, Any]],
    ) -> None:
        self._bench, self._experiment = bench, bench.experiment
        self._evaluations = Evaluations(executor, journal)
        self._journal = journal
        self._listener = listener
        self._spent = Spent()
        self._folders = folders
        self._searches = [
            TargetSearch(
                experiment,
                target,
                self._evaluations,
                batches=[len(batch) for batch in bench.evaluator.images("selection").batches],
                classes=bench.classes,
                spent=self._spent,
                provenance=provenance,
            )
            for experiment, target, provenance in zip(
                shares(self._experiment, len(targets)), targets, provenances, strict=True
            )
        ]
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
            self._listener(events.StageStarted("baselines"))
            await self._evaluate_baselines()
            await self._probe()
            self._listener(events.StageStarted("search", self._experiment.search.algorithm))
            await self._search()
            for name in self._experiment.search.baselines:
                self._listener(events.StageStarted("comparison", name))
                for search in self._searches:
                    await search.compare(name, self._selection_images)
            self._listener(events.StageStarted("test"))
            await self._test()
            status = "done"
        finally:
            documents = [self._write(search, status) for search in self._searches]
            statuses = {document.status for document in documents}
            self._listener(
                events.RunFinished("infeasible" if "infeasible" in statuses else status, self._session_seconds)
            )
        return replace(documents[0], other_targets=tuple(documents[1:]))

    async def _evaluate_baselines(self) -> None:
        """The presets in the form that each device executes; equal ones are evaluated once."""
        plans: dict[str, Plan] = {}
        for search in self._searches:
            plans |= {plan_hash(plan): plan for plan in search.target.presets.values()}
            for name, reason in search.target.refused.items():
                self._listener(events.Noticed(f"No baseline {name}: {reason}"))
        records = dict(zip(plans, await self._evaluations.of(list(plans.values()), split="selection"), strict=True))
        for search in self._searches:
            for name, plan in search.target.presets.items():
                record = records[plan_hash(plan)]
                if search.judged.take(plan, record) is None:
                    self._listener(events.Noticed(f"The baseline {name} could not be evaluated: {record.reason}"))
                else:
                    search.baselines[name] = record.phenotype
        done = [record for record in records.values() if record.result is not None]
        self._spent.images += sum(int(record.result["images"]) for record in done if record.result is not None)
        self._listener(
            promise(
                self._experiment,
                [record.seconds for record in records.values()],
                operations=len(self._bench.captured.graph.ops),
                images=self._selection_images,
                targets=len(self._searches),
            )
        )

    async def _probe(self) -> None:
        """What each choice adds to the divergence, from the journal if an earlier session has measured it."""
        search = self._experiment.search
        if not search.sensitivity:
            return
        space = probe_space(self._experiment, [entry.target for entry in self._searches])
        self._listener(events.StageStarted("sensitivity", f"{len(space.groups)} groups"))
        known = self._journal.kept(PROBES)
        if known is None:
            stop = threading.Event()
            try:
                table = await asyncio.to_thread(
                    SENSITIVITY_TABLES[search.sensitivity_metric],
                    self._bench.evaluator,
                    space,
                    images=search.sensitivity_images,
                    workers=self._experiment.evaluation.parallel_evaluations,
                    stop=stop,
                )
            except asyncio.CancelledError:
                stop.set()
                raise
            self._journal.keep(PROBES, table.to_dict())
        else:
            table = ProbeTable.from_dict(known)
        ratio = table.passes / max(table.full_passes, 1)
        self._listener(events.SensitivityProbed(table.probes, table.images, ratio, known is not None))
        self._spent.images += round(table.passes)
        for entry in self._searches:
            entry.probes = translated(table, space, entry.target.space)

    async def _search(self) -> None:
        first = self._searches[0].target.space
        self._listener(
            events.SearchStarted(
                len(first.groups), first.size_log10, self._experiment.search.evaluations, self._resumed
            )
        )
        counter = itertools.count(1)

        def on_record(record: Record, is_known: bool) -> None:
            self._announce(record, next(counter), from_journal=is_known)

        active = list(self._searches)
        while active:
            for search in list(active):
                answered = await search.step(on_record)
                for other in self._searches:
                    if answered and other is not search:
                        other.exploration.offer(answered)
                if answered:
                    self._close_generation(search)
                if not answered or search.limit_reached():
                    active.remove(search)
        for search in self._searches:
            search.compare_what_is_known(self._selection_images)

    @property
    def _selection_images(self) -> int:
        return len(self._bench.evaluator.images("selection").labels)

    def _announce(self, record: Record, number: int, *, from_journal: bool) -> None:
        shown: dict[str, float] = {}
        if record.result is not None:
            shown = {name: record.result[source] for name, source in (("kl", "kl"), ("accuracy_drop_pp", "drop_pp"))}
        self._listener(
            events.CandidateEvaluated(number, record.phenotype, shown, record.reason, record.seconds, from_journal)
        )

    def _close_generation(self, search: TargetSearch) -> None:
        archive = search.exploration.archive
        hypervolume = archive.record()
        document = self._write(search, "interrupted", is_draft=True)
        done = len(set().union(*(entry.exploration.seen for entry in self._searches)))
        self._listener(
            events.GenerationFinished(
                search.generation,
                archive.evaluations,
                len(archive.front),
                hypervolume,
                self._eta_seconds(done),
                document.front,
                search.rank_correlation,
                document.device if len(self._searches) > 1 else "",
            )
        )

    def _eta_seconds(self, done: int) -> float | None:
        """Time to the end of the budget at the pace of this session; None while it repeats what the journal knows."""
        remaining, new = self._experiment.search.evaluations - done, done - self._resumed
        if remaining <= 0:
            return 0.0
        return self._session_seconds / new * remaining if new > 0 else None

    async def _test(self) -> None:
        """Judge members of every front and the baselines; each device has its share of the points to test."""
        wanted = self._experiment.evaluation.test_points
        share = None if wanted is None else -(-wanted // len(self._searches))
        named: dict[str, tuple[str, Plan]] = {}
        for search in self._searches:
            document = self._document(search, "interrupted")
            for point in (*spread(document, share), *document.baselines):
                named.setdefault(plan_hash(point.plan), (point.id, point.plan))

        def on_record(record: Record, _from_journal: bool) -> None:
            if record.result is not None:
                accuracy = Accuracy.from_dict(record.result)
                self._spent.tested[record.phenotype] = tested(accuracy)
                self._listener(events.Tested(named[record.phenotype][0], accuracy.top1, accuracy.images))

        await self._evaluations.of([plan for _, plan in named.values()], split="test", on_record=on_record)

    @property
    def _session_seconds(self) -> float:
        return time.perf_counter() - self._started

    def _write(self, search: TargetSearch, status: str, *, is_draft: bool = False) -> FrontDocument:
        document = self._document(search, status)
        for folder in self._folders[self._searches.index(search)]:
            write_front(folder, document, draft=is_draft)
        return document

    def _document(self, search: TargetSearch, status: str) -> FrontDocument:
        self._spent.seconds = self._seconds_before + self._session_seconds
        images_of: Counter[str] = Counter()
        for entry in self._searches:
            images_of |= entry.exploration.images_of
        return search.document(status, images=self._spent.images + images_of.total())


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
