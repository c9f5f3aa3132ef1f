"""One run: baselines, search, test of what was found; a valid front on disk after every generation."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evoquant.errors import ConfigurationError
from evoquant.evaluate import Accuracy, ProbeTable, Workbench, probe_choices
from evoquant.hardware import CostModel
from evoquant.run import events
from evoquant.run.comparison import known_comparison, run_comparison
from evoquant.run.evaluations import Evaluations
from evoquant.run.executors import Executor
from evoquant.run.exploration import Exploration, Judged
from evoquant.run.front_file import read_front, write_front
from evoquant.run.journal import Journal, Record
from evoquant.run.objectives import plan_name
from evoquant.run.points import knee_of, spread, tested
from evoquant.run.promise import promise
from evoquant.run.searchers import Genes, SearcherFactory
from evoquant.run.verdict import verdict
from evoquant.search import Termination
from evoquant.space import SearchSpace, plan_hash, presets
from evoquant.types.front import Comparison, FrontDocument, ParetoPoint, TestedAccuracy

PROBES = "probes"
"""Name of the table of sensitivities in the journal."""


@dataclass
class _Progress:
    """What a session knows so far."""

    baselines: dict[str, str] = field(default_factory=dict)
    tested: dict[str, TestedAccuracy] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    images: int = 0


class Session:
    """One session of a run in its folder; the same run may have had sessions before.

    Args:
        bench: Model and images.
        space: What is searched.
        costs: Latency, energy and memory of a plan.
        folder: The run folder.
        executor: Where evaluations run.
        journal: The run's journal, claimed for this run.
        listener: Told what happens.
        provenance: Goes into the result as it is.
    """

    def __init__(
        self,
        bench: Workbench,
        space: SearchSpace,
        costs: CostModel,
        *,
        folder: Path,
        executor: Executor,
        journal: Journal,
        listener: events.Listener,
        provenance: Mapping[str, Any],
    ) -> None:
        self._bench, self._space, self._costs = bench, space, costs
        self._experiment = bench.experiment
        self._folder = folder
        self._evaluations = Evaluations(executor, journal)
        self._journal = journal
        self._judged = Judged(costs)
        self._main = Exploration(self._experiment, space, self._evaluations, self._judged)
        self._listener = listener
        self._provenance = provenance
        self._state = _Progress()
        self._started = time.perf_counter()
        self._seconds_before = _seconds_before(folder)
        self._resumed = sum(1 for record in journal if record.split == "selection")

    async def run(self) -> FrontDocument:
        """Evaluate the baselines, search, and test the front.

        If it is cancelled, the front found so far is on disk before ``asyncio.CancelledError`` goes on.

        Raises:
            RunError: If the journal or the front cannot be written.
        """
        status = "interrupted"
        try:
            self._listener(events.StageStarted("baselines"))
            await self._evaluate_baselines()
            factory = SearcherFactory(
                self._experiment, self._space, self._costs, self._bench.classes, await self._probe()
            )
            self._listener(events.StageStarted("search", self._experiment.search.algorithm))
            await self._search(factory)
            await self._compare(factory)
            self._listener(events.StageStarted("test"))
            await self._test()
            status = "done" if self._main.archive.front else "infeasible"
        finally:
            document = self._document(status)
            write_front(self._folder, document)
            self._listener(events.RunFinished(status, self._session_seconds))
        return document

    async def _evaluate_baselines(self) -> None:
        plans = presets(self._space.graph, self._bench.classes)
        records = await self._evaluations.of(list(plans.values()), split="selection")
        for (name, plan), record in zip(plans.items(), records, strict=True):
            if self._judged.take(plan, record) is None:
                self._listener(events.Noticed(f"The baseline {name} could not be evaluated: {record.reason}"))
            else:
                self._state.baselines[name] = record.phenotype
                self._state.images += 0 if record.result is None else int(record.result["images"])
        seconds = [record.seconds for record in records]
        self._listener(promise(self._experiment, seconds, operations=len(self._space.graph.ops)))

    async def _probe(self) -> ProbeTable | None:
        """What each choice adds to the divergence, from the journal if an earlier session has measured it."""
        search = self._experiment.search
        if not search.sensitivity:
            return None
        self._listener(events.StageStarted("sensitivity", f"{len(self._space.groups)} groups"))
        known = self._journal.kept(PROBES)
        if known is None:
            table = await self._measured_probes()
            self._journal.keep(PROBES, table.to_dict())
        else:
            table = ProbeTable.from_dict(known)
        ratio = table.passes / max(table.full_passes, 1)
        self._listener(events.SensitivityProbed(table.probes, table.images, ratio, known is not None))
        self._state.images += round(table.passes)
        return table

    async def _measured_probes(self) -> ProbeTable:
        search, stop = self._experiment.search, threading.Event()
        try:
            return await asyncio.to_thread(
                probe_choices,
                self._bench.evaluator,
                self._space,
                images=search.sensitivity_images,
                formats=search.sensitivity_formats,
                workers=self._experiment.evaluation.parallel_evaluations,
                stop=stop,
            )
        except asyncio.CancelledError:
            stop.set()
            raise

    async def _search(self, factory: SearcherFactory) -> None:
        search, main = self._experiment.search, self._main
        structured, programmed = factory.seeds()
        searcher = factory.searcher(search.algorithm, [*structured, *programmed])
        limits = Termination(
            evaluations=search.evaluations, minutes=search.minutes, patience=search.plateau_generations
        )
        self._listener(
            events.SearchStarted(len(self._space.groups), self._space.size_log10, search.evaluations, self._resumed)
        )

        def on_batch(number: int) -> bool:
            reports = getattr(searcher, "reports", ())
            self._close_generation(number, reports[-1].rank_correlation if reports else None)
            return not limits.reason(
                evaluations=main.archive.evaluations,
                seconds=self._seconds_before + self._session_seconds,
                hypervolumes=[value for _, value in main.archive.history],
            )

        counter = itertools.count(1)
        await main.run(
            searcher,
            on_batch=on_batch,
            on_record=lambda record, known: self._announce(record, next(counter), from_journal=known),
        )
        self._compare_what_is_known(programmed, 0 if factory.probes is None else round(factory.probes.passes))

    def _compare_what_is_known(self, programmed: Sequence[Genes], probe_images: int) -> None:
        """Comparisons that cost nothing: the presets, and the seeds of integer programming."""
        keys = {"presets": (list(self._state.baselines.values()), 0)}
        if programmed:
            keys["seeds"] = ([self._space.phenotype_hash(genes) for genes in programmed], probe_images)
        reference = self._main.archive.reference
        assert reference is not None, "set by the first batch"
        for name, (phenotypes, other_images) in keys.items():
            self._state.comparisons.append(
                known_comparison(
                    name,
                    phenotypes,
                    judged=self._judged,
                    experiment=self._experiment,
                    reference=reference,
                    images=self._selection_images,
                    other_images=other_images,
                )
            )

    async def _compare(self, factory: SearcherFactory) -> None:
        """Searches to compare with, each for as many forward passes as the search and its probes have made."""
        probes = 0 if factory.probes is None else round(factory.probes.passes)
        reference = self._main.archive.reference
        assert reference is not None, "set by the first batch"
        for name in self._experiment.search.baselines:
            self._listener(events.StageStarted("comparison", name))
            self._state.comparisons.append(
                await run_comparison(
                    name,
                    factory,
                    evaluations=self._evaluations,
                    judged=self._judged,
                    reference=reference,
                    images=self._selection_images,
                    spent=self._main.images + probes,
                )
            )

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

    def _close_generation(self, generation: int, rank_correlation: float | None) -> None:
        archive = self._main.archive
        hypervolume = archive.record()
        document = self._document("interrupted")
        write_front(self._folder, document, draft=True)
        budget = self._experiment.search.evaluations
        new = max(1, archive.evaluations - self._resumed)
        eta = self._session_seconds / new * (budget - archive.evaluations)
        self._listener(
            events.GenerationFinished(
                generation,
                archive.evaluations,
                len(archive.front),
                hypervolume,
                max(0.0, eta),
                document.front,
                rank_correlation,
            )
        )

    async def _test(self) -> None:
        document = self._document("interrupted")
        chosen = spread(document, self._experiment.evaluation.test_points)
        points = [*chosen, *document.baselines]
        by_key = {plan_hash(point.plan): point for point in points}

        def on_record(record: Record, _from_journal: bool) -> None:
            if record.result is not None:
                accuracy = Accuracy.from_dict(record.result)
                self._state.tested[record.phenotype] = tested(accuracy)
                self._listener(events.Tested(by_key[record.phenotype].id, accuracy.top1, accuracy.images))

        await self._evaluations.of([point.plan for point in points], split="test", on_record=on_record)

    @property
    def _session_seconds(self) -> float:
        return time.perf_counter() - self._started

    def _document(self, status: str) -> FrontDocument:
        state, archive, names = self._state, self._main.archive, self._experiment.objectives
        members = archive.front or tuple(entry for entry in (archive.best_infeasible,) if entry is not None)
        front = tuple(
            self._point(f"p{number:02d}", plan_name(self._judged.plans[member.key], self._space.graph), member.key)
            for number, member in enumerate(members, start=1)
        )
        baselines = tuple(self._point(name, name, key) for name, key in state.baselines.items())
        chosen = knee_of(front, baselines, names)
        reference = archive.reference
        return FrontDocument(
            model=self._space.graph.model,
            device=self._costs.device.name,
            status=status,
            objectives=names,
            front=front,
            baselines=baselines,
            knee=chosen,
            hypervolume=0.0 if reference is None else archive.hypervolume,
            reference_point={} if reference is None else dict(zip(names, reference.point, strict=True)),
            hypervolume_history=archive.history,
            evaluated=tuple(self._main.evaluated),
            evaluations=archive.evaluations,
            failures=archive.failures,
            images_evaluated=state.images + self._main.images,
            seconds=self._seconds_before + self._session_seconds,
            verdict=verdict(front, baselines, names, chosen, reference, state.comparisons),
            provenance=self._provenance,
            comparisons=tuple(state.comparisons),
        )

    def _point(self, identifier: str, name: str, key: str) -> ParetoPoint:
        judged = self._judged
        return ParetoPoint(identifier, name, judged.values[key], judged.plans[key], self._state.tested.get(key))


def _seconds_before(folder: Path) -> float:
    try:
        return read_front(folder).seconds
    except ConfigurationError:
        return 0.0
