"""What racing saves, and what it costs the front.

    python experiments/racing.py                                        # the embedded default, half an hour
    python experiments/racing.py --algorithms nsga2 --images 256 --seeds 1

Each search is made twice with the same seed and the same number of evaluations: every candidate on all selection
images, and raced. Hypervolumes are on one scale, that of the structured seeds. The first search is then looked at
again: how many candidates a race would have stopped there (``would_stop``), how many images that saves, and how many of
these candidates no member of the front of their time dominates (``wrongly``), which the first search knows. Latencies
are those of the roofline, so that every machine finds the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evoquant.config import load_experiment
from evoquant.evaluate import IMAGE_SCORE, SENSITIVITY_TABLES, Plan, ProbeTable, prepare
from evoquant.hardware import CostModel, load_device
from evoquant.run import build_space
from evoquant.run.evaluations import Evaluations
from evoquant.run.executors import ThreadExecutor
from evoquant.run.exploration import Answered, Exploration, Judged
from evoquant.run.journal import Journal, Record
from evoquant.run.latency import open_latency_model
from evoquant.run.objectives import reference_limits, vector
from evoquant.run.race import Race
from evoquant.run.searchers import SearcherFactory
from evoquant.search import Evaluated, ParetoArchive, ReferencePoint, looks
from evoquant.space import structured_seeds

HERE = Path(__file__).parent


class Measurement:
    """Searches of one model that share their evaluations."""

    def __init__(self, arguments: argparse.Namespace, journal: Journal) -> None:
        experiment = load_experiment(arguments.experiment)
        data, target = experiment.data, experiment.target
        selection = data.selection.model_copy(update={"count": arguments.images})
        self.experiment = experiment.model_copy(
            update={
                "data": data.model_copy(update={"selection": selection}),
                "target": target.model_copy(update={"latency": "roofline", "latency_table": None}),
                "search": experiment.search.model_copy(update={"evaluations": arguments.evaluations}),
            }
        )
        self.bench = prepare(self.experiment)
        graph, device = self.bench.captured.graph, load_device(target.device[0])
        self.space = build_space(self.experiment, graph, device)
        latency = open_latency_model(self.experiment.target, device, graph, self.space.reachable())
        self.judged = Judged(CostModel(graph, device, latency))
        workers = experiment.evaluation.parallel_evaluations
        self.journal, self.evaluations = journal, Evaluations(ThreadExecutor(self.bench, workers), journal)
        self.looks = looks([len(batch) for batch in self.bench.evaluator.images("selection").batches])
        self.names = list(self.experiment.objectives)

    def probe(self) -> ProbeTable:
        """The table of sensitivities, for all searches."""
        known, search = self.journal.kept("probes"), self.experiment.search
        if known is not None:
            return ProbeTable.from_dict(known)
        judge = SENSITIVITY_TABLES[search.sensitivity_metric]
        table = judge(self.bench.evaluator, self.space, images=search.sensitivity_images)
        self.journal.keep("probes", table.to_dict())
        return table

    async def reference(self) -> ReferencePoint:
        """The scale of all hypervolumes."""
        plans = [self.space.decode(genes) for _, genes in structured_seeds(self.space, classes=self.bench.classes)]
        records = await self.evaluations.of(plans, split="selection")
        taken = [self.judged.take(plan, record) for plan, record in zip(plans, records, strict=True)]
        values = [vector(entry, self.names) for entry in taken if entry is not None]
        return ReferencePoint.derive(values, limits=reference_limits(self.names))

    async def run(
        self, algorithm: str, seed: int, probes: ProbeTable, reference: ReferencePoint, *, is_raced: bool
    ) -> tuple[Exploration, list[list[Answered]]]:
        """One search with its batches."""
        search = self.experiment.search.model_copy(update={"seed": seed})
        experiment = self.experiment.model_copy(update={"search": search})
        factory = SearcherFactory(experiment, self.space, self.judged.costs, self.bench.classes, probes)
        searcher = factory.searcher(algorithm, [genes for group in factory.seeds() for genes in group])
        exploration = Exploration(
            experiment,
            self.space,
            self.evaluations,
            self.judged,
            reference=reference,
            looks=self.looks if is_raced else (),
        )
        batches = []
        while answered := await exploration.step(searcher):
            batches.append(answered)
        return exploration, batches

    def looked_at_again(self, batches: Sequence[Sequence[Answered]]) -> dict[str, int]:
        """What a race would have stopped of a search without one."""
        archive, found = ParetoArchive(), {"would_stop": 0, "wrongly": 0, "images_saved": 0}
        scores = {}
        for number, batch in enumerate(batches):
            done = [(plan, record) for plan, record in batch if record.status == "done"]
            scores |= {record.phenotype: np.frombuffer(record.scores, dtype=IMAGE_SCORE) for _, record in done}
            if number:
                race = Race(
                    self.looks, objectives=self.names, costs=self.judged.costs, front=archive.front, scores=scores
                )
                for plan, record in done:
                    self._count(race, plan, record, archive, found)
            for plan, record in done:
                values = self.judged.take(plan, record) or {}
                archive.add([Evaluated(0, record.phenotype, np.array([0]), vector(values, self.names))])
        return found

    def _count(self, race: Race, plan: Plan, record: Record, archive: ParetoArchive, found: dict[str, int]) -> None:
        scores = np.frombuffer(record.scores, dtype=IMAGE_SCORE)
        look = next((look for look in race.looks if race.estimates(plan, scores[:look]) is not None), None)
        if look is None:
            return
        found["would_stop"] += 1
        found["images_saved"] += len(scores) - look
        values = vector(self.judged.values[record.phenotype], self.names)
        found["wrongly"] += not any(
            all(theirs <= own for theirs, own in zip(entry.objectives, values, strict=True)) for entry in archive.front
        )


async def measure(measurement: Measurement, algorithms: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """One row for each algorithm and seed."""
    probes, reference = measurement.probe(), await measurement.reference()
    rows = []
    for algorithm in algorithms:
        for seed in range(seeds):
            plain, batches = await measurement.run(algorithm, seed, probes, reference, is_raced=False)
            raced, _ = await measurement.run(algorithm, seed, probes, reference, is_raced=True)
            row = {
                "algorithm": algorithm,
                "seed": seed,
                "images": plain.images,
                "images_raced": raced.images,
                "saved": 1 - raced.images / plain.images,
                "stopped": raced.archive.stopped,
                "hypervolume": plain.archive.hypervolume,
                "hypervolume_raced": raced.archive.hypervolume,
                "front": len(plain.archive.front),
                "front_raced": len(raced.archive.front),
                **measurement.looked_at_again(batches),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


async def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=HERE / "quickstart.yaml")
    parser.add_argument("--algorithms", nargs="+", default=["surrogate", "nsga2"])
    parser.add_argument("--images", type=int, default=512, help="selection images")
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--journal", type=Path, help="keep evaluations here, so that a stopped measurement goes on")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "racing.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Journal(arguments.journal or Path(folder) / "sqlite") as journal:
        rows = await measure(Measurement(arguments, journal), arguments.algorithms, arguments.seeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "journal")}
    arguments.out.write_text(json.dumps({"settings": settings, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
