"""How much of plain NSGA-II's budget the surrogate needs, and what everything else reaches with the same.

    python experiments/search_efficiency.py          # the embedded default: ten minutes on one core for each seed
    python experiments/search_efficiency.py --experiment experiments/deit_tiny_imagenet.yaml \
        --images 128 --population 24 --generations 10 --seeds 1

Plain NSGA-II, with the seeds of the structure alone, makes ``population`` times ``generations`` evaluations on all
selection images. The surrogate, with probes of sensitivity and seeds of integer programming, stops after
``--budget`` of these; NSGA-II with the same seeds, integer programming alone, the greedy and the random search are
given as many images as the surrogate and its probes use. Every hypervolume of one model is on one scale, that of the
structured seeds. Latencies are those of the roofline, so that every machine finds the same. Before any search every
weight is quantized to each of its precisions; that takes ``seconds_weights``, which all searches share and none counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from evoquant.config import Experiment, load_experiment
from evoquant.evaluate import SENSITIVITY_TABLES, ProbeTable, Workbench, prepare
from evoquant.hardware import CostModel, load_device
from evoquant.run import build_space
from evoquant.run.evaluations import Evaluations
from evoquant.run.executors import ThreadExecutor
from evoquant.run.exploration import Exploration, Judged
from evoquant.run.journal import Journal
from evoquant.run.latency import open_latency_model
from evoquant.run.objectives import reference_limits, vector
from evoquant.run.searchers import SearcherFactory
from evoquant.search import ReferencePoint, Searcher
from evoquant.space import structured_seeds

HERE = Path(__file__).parent
ENOUGH = 0.99
OTHERS = ("nsga2_seeded", "milp", "greedy", "random")


@dataclass(frozen=True, slots=True)
class Trace:
    """One search: (images, seconds, hypervolume) after every batch."""

    steps: tuple[tuple[int, float, float], ...]

    @property
    def final(self) -> tuple[int, float, float]:
        """The last step."""
        return self.steps[-1]

    def first_with(self, hypervolume: float) -> tuple[int, float] | None:
        """Images and seconds after which this hypervolume is reached."""
        return next(((images, seconds) for images, seconds, value in self.steps if value >= hypervolume), None)

    def until(self, *, images: float = inf, seconds: float = inf) -> float:
        """The hypervolume after so many images or seconds."""
        values = [value for used, spent, value in self.steps if used <= images and spent <= seconds]
        return values[-1] if values else 0.0


class Contest:
    """All searches on one model; what one has evaluated the others take from the journal, with the time it took."""

    def __init__(self, experiment: Experiment, journal: Journal) -> None:
        self.bench: Workbench = prepare(experiment)
        device = load_device(experiment.target.device[0])
        self.space = build_space(experiment, self.bench.captured.graph, device)
        latency = open_latency_model(experiment.target, device, self.space.graph, self.space.reachable())
        self.costs = CostModel(self.space.graph, device, latency)
        self.journal, self.judged = journal, Judged(self.costs)
        self.evaluations = Evaluations(ThreadExecutor(self.bench, experiment.evaluation.parallel_evaluations), journal)
        self.images = len(self.bench.evaluator.images("selection").labels)
        self.experiment = experiment

    def probe(self, images: int) -> tuple[ProbeTable, float]:
        """The table of sensitivities and the seconds that it took; the first one quantizes all weights."""
        started, judge = time.perf_counter(), SENSITIVITY_TABLES[self.experiment.search.sensitivity_metric]
        table = judge(self.bench.evaluator, self.space, images=images)
        return table, time.perf_counter() - started

    async def reference(self) -> ReferencePoint:
        """The scale of all hypervolumes."""
        plans = [self.space.decode(genes) for _, genes in structured_seeds(self.space, classes=self.bench.classes)]
        records = await self.evaluations.of(plans, split="selection")
        taken = [self.judged.take(plan, record) for plan, record in zip(plans, records, strict=True)]
        names = self.experiment.objectives
        return ReferencePoint.derive(
            [vector(values, names) for values in taken if values is not None], limits=reference_limits(names)
        )

    def factory(
        self, seed: int, probes: ProbeTable | None, evaluations: int, population: int | None = None
    ) -> SearcherFactory:
        """Makes the searches of one seed."""
        changes = {"seed": seed, "evaluations": evaluations}
        if population is not None:
            changes["population_size"] = population
        search = self.experiment.search.model_copy(update=changes)
        experiment = self.experiment.model_copy(update={"search": search})
        return SearcherFactory(experiment, self.space, self.costs, self.bench.classes, probes)

    async def run(self, searcher: Searcher, reference: ReferencePoint, *, images: int, seconds: float) -> Trace:
        """One search that starts with so much spent; an evaluation that the journal has counts with its time there."""
        exploration = Exploration(self.experiment, self.space, self.evaluations, self.judged, reference=reference)
        steps: list[tuple[int, float, float]] = []
        replayed = 0.0
        started = time.perf_counter()

        def on_record(record: Any, known: bool) -> None:  # noqa: ANN401
            nonlocal replayed
            replayed += record.seconds if known else 0.0

        def on_batch(_number: int) -> bool:
            workers = self.experiment.evaluation.parallel_evaluations
            spent = seconds + time.perf_counter() - started + replayed / workers
            steps.append((images + exploration.images, spent, exploration.archive.hypervolume))
            return True

        await exploration.run(searcher, on_batch=on_batch, on_record=on_record)
        return Trace(tuple(steps))


async def measure(
    contest: Contest, *, seeds: Sequence[int], population: int, generations: int, budget: float
) -> dict[str, Any]:
    """All searches of one model for all seeds."""
    _, seconds_weights = contest.probe(1)
    table, seconds = contest.probe(contest.experiment.search.sensitivity_images)
    plain = population * generations
    reference = await contest.reference()
    probes = round(table.passes)
    rows = []
    for seed in seeds:
        bare = contest.factory(seed, None, plain, population)
        traces = {"nsga2": await contest.run(bare.baseline("nsga2", plain), reference, images=0, seconds=0.0)}
        known = contest.factory(seed, table, int(plain * budget) - probes // contest.images)
        start = [genes for group in known.seeds() for genes in group]
        for name in ("surrogate", "nsga2_seeded"):
            searcher = known.searcher(name.removesuffix("_seeded"), start)
            traces[name] = await contest.run(searcher, reference, images=probes, seconds=seconds)
        spent = traces["surrogate"].final[0] // contest.images
        for name in ("milp", "greedy", "random"):
            paid = probes if name == "milp" else 0
            searcher = known.baseline(name, spent - paid // contest.images)
            traces[name] = await contest.run(searcher, reference, images=paid, seconds=seconds if paid else 0.0)
        rows.append(_row(seed, traces))
    return {**_summary(contest, rows, table), "seconds_weights": seconds_weights, "seconds_probes": seconds}


def _row(seed: int, traces: dict[str, Trace]) -> dict[str, Any]:
    plain, surrogate = traces["nsga2"], traces["surrogate"]
    reached = surrogate.first_with(ENOUGH * plain.final[2])
    ratios = (None, None) if reached is None else (reached[0] / plain.final[0], reached[1] / plain.final[1])
    return {
        "seed": seed,
        "images_ratio_to_99pct_hv": ratios[0],
        "seconds_ratio_to_99pct_hv": ratios[1],
        "hv_nsga2_at_equal_images": plain.until(images=surrogate.final[0]),
        "hv_nsga2_at_equal_seconds": plain.until(seconds=surrogate.final[1]),
        **{f"hv_{name}": trace.final[2] for name, trace in traces.items()},
        **{f"images_{name}": trace.final[0] for name, trace in traces.items()},
        **{f"seconds_{name}": trace.final[1] for name, trace in traces.items()},
        "traces": {name: [list(step) for step in trace.steps] for name, trace in traces.items()},
    }


def _summary(contest: Contest, rows: Sequence[dict[str, Any]], table: ProbeTable) -> dict[str, Any]:
    """Medians over the seeds under the names of the rows, with the range beside each."""
    summary: dict[str, Any] = {
        "model": contest.experiment.model.name,
        "device": contest.costs.device.name,
        "selection_images": contest.images,
        "probes": {"probes": table.probes, "images": table.images, "passes": table.passes},
        "seeds": [row["seed"] for row in rows],
    }
    for name in [key for key in rows[0] if key not in ("seed", "traces")]:
        values = [row[name] for row in rows]
        is_complete = all(value is not None for value in values)
        summary[name] = statistics.median(values) if is_complete else None
        summary[f"{name}_range"] = [min(values), max(values)] if is_complete else None
    return {**summary, "runs": list(rows)}


def _settings(arguments: argparse.Namespace, path: Path) -> Experiment:
    experiment = load_experiment(path)
    selection = experiment.data.selection.model_copy(update={"count": arguments.images})
    return experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"selection": selection}),
            "target": experiment.target.model_copy(update={"latency": "roofline", "latency_table": None}),
        }
    )


def _show(entry: dict[str, Any]) -> None:
    print(f"{entry['model']}: {entry['selection_images']} images, seeds {entry['seeds']}")
    for name in ("nsga2", "surrogate", *OTHERS):
        value, (low, high) = entry[f"hv_{name}"], entry[f"hv_{name}_range"]
        print(
            f"  {name:13} hypervolume {value:.4f} ({low:.4f} to {high:.4f})  images {entry[f'images_{name}']:.0f}  "
            f"seconds {entry[f'seconds_{name}']:.0f}"
        )
    equal = (entry["hv_nsga2_at_equal_images"], entry["hv_nsga2_at_equal_seconds"])
    print(f"  plain NSGA-II with the images of the surrogate {equal[0]:.4f}, in its time {equal[1]:.4f}")
    for name, what in (("images", "images"), ("seconds", "time")):
        ratio, bounds = entry[f"{name}_ratio_to_99pct_hv"], entry[f"{name}_ratio_to_99pct_hv_range"]
        print(f"  share of its {what} to {ENOUGH:.0%} of its hypervolume: {ratio} {bounds}")


async def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, nargs="+", default=[HERE / "quickstart.yaml"])
    parser.add_argument("--images", type=int, default=512, help="selection images")
    parser.add_argument("--population", type=int, default=40, help="of plain NSGA-II")
    parser.add_argument("--generations", type=int, default=15, help="of plain NSGA-II")
    parser.add_argument("--budget", type=float, default=0.125, help="the surrogate's share of its images")
    parser.add_argument("--seeds", type=int, default=1, help="so many, from 0 on")
    parser.add_argument("--journals", type=Path, help="keep evaluations here, so that a stopped measurement goes on")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search_efficiency.json")
    arguments = parser.parse_args()
    for path in arguments.experiment:
        experiment = _settings(arguments, path)
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.journals or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            with Journal(folder / f"{experiment.name}_{arguments.images}.sqlite") as journal:
                entry = await measure(
                    Contest(experiment, journal),
                    seeds=range(arguments.seeds),
                    population=arguments.population,
                    generations=arguments.generations,
                    budget=arguments.budget,
                )
        _show(entry)
        write(arguments.out, entry)


def write(path: Path, entry: dict[str, Any]) -> None:
    """Put the result of a model in the place of an earlier one of the same model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    models = json.loads(path.read_text())["models"] if path.exists() else []
    others = [known for known in models if known["model"] != entry["model"]]
    path.write_text(json.dumps({"models": [*others, entry]}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
