"""Enumerate a small space, then see how much of its true front a search finds with two percent of the evaluations.

    python experiments/exhaustive_truth.py [--images 64] [--seeds 5] [--share 0.02]

The embedded default in a space of 4,096 plans: six of its layers may have weights of 3, 4, 6 or 8 bits. The probes of
sensitivity count as evaluations. Latencies are those of the roofline, so that every machine finds the same.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
from pathlib import Path

from search_efficiency import Contest

from evoquant.config import Experiment, load_experiment
from evoquant.run.exploration import Exploration
from evoquant.run.journal import Journal
from evoquant.run.objectives import reference_limits, vector
from evoquant.search import ParetoArchive, ReferencePoint
from evoquant.search.archive import Evaluated

HERE = Path(__file__).parent
OPEN = (
    "stages.1.1.conv1_1x1.conv",
    "stages.2.1.conv_fusion.conv",
    "stages.2.1.transformer.0.attn.qkv",
    "stages.2.1.transformer.1.mlp.fc2",
    "stages.3.1.conv_fusion.conv",
    "stages.3.1.transformer.0.mlp.fc1",
)
SPACE = {
    "schema_version": 1,
    "description": "Six layers with four widths of weights each; everything else has 8 bits.",
    "default": {
        "weights": ["uniform:8"],
        "activations": ["uniform:8"],
        "granularity": ["per_channel"],
        "calibration": ["fisher"],
        "symmetric": [False],
    },
    "rules": [{"match": {"name": list(OPEN)}, "weights": ["uniform:3", "uniform:4", "uniform:6", "uniform:8"]}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="selection images")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.02, help="of the evaluations")
    parser.add_argument("--journal", type=Path, help="keep evaluations here, so that a stopped measurement goes on")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(arguments.journal or Path(folder) / "journal.sqlite") as journal,
    ):
        asyncio.run(compare(Contest(small(arguments.images), journal), arguments.seeds, arguments.share))


def small(images: int) -> Experiment:
    """The embedded default in the small space."""
    experiment = load_experiment(HERE / "quickstart.yaml")
    selection = experiment.data.selection.model_copy(update={"count": images})
    return experiment.model_copy(
        update={
            "space": SPACE,
            "data": experiment.data.model_copy(update={"selection": selection}),
            "target": experiment.target.model_copy(update={"latency": "roofline", "latency_table": None}),
        }
    )


async def compare(contest: Contest, seeds: int, share: float) -> None:
    """Print the truth, and what each seed finds."""
    truth = await true_front(contest)
    plans = truth.evaluations
    table, _ = contest.probe(contest.experiment.search.sensitivity_images)
    paid = round(table.passes / contest.images)
    budget = int(share * plans)
    print(f"{plans} plans, {len(truth.front)} of them not dominated, hypervolume {truth.hypervolume:.5f}")
    print(f"{budget} evaluations, {paid} of them for {table.probes} probes")
    true_keys = {entry.key for entry in truth.front}
    shares, recalls = [], []
    for seed in range(seeds):
        factory = contest.factory(seed, table, budget - paid)
        start = [genes for group in factory.seeds() for genes in group]
        exploration = Exploration(
            contest.experiment, contest.space, contest.evaluations, contest.judged, reference=truth.reference
        )
        await exploration.run(factory.searcher("surrogate", start))
        found = exploration.archive
        shares.append(found.hypervolume / truth.hypervolume)
        recalls.append(len(true_keys & {entry.key for entry in found.front}) / len(true_keys))
        print(
            f"seed {seed}: {found.evaluations} evaluated, {shares[-1]:.2%} of the true hypervolume, "
            f"{recalls[-1]:.1%} of the true points"
        )
    print(f"median: {statistics.median(shares):.2%} of the hypervolume, {statistics.median(recalls):.1%} of the points")


async def true_front(contest: Contest) -> ParetoArchive:
    """The front of all plans of the space, on a scale of its own."""
    space, names = contest.space, contest.experiment.objectives
    by_group = (space.choice_plans(index) for index in range(len(space.groups)))
    plans = [{op: config for part in parts for op, config in part.items()} for parts in itertools.product(*by_group)]
    records = await contest.evaluations.of(plans, split="selection")
    entries = []
    for plan, record in zip(plans, records, strict=True):
        values = contest.judged.take(plan, record)
        if values is None:
            raise SystemExit(f"A plan of the space failed: {record.reason}")
        entries.append(Evaluated(len(entries), record.phenotype, space.encode(plan), vector(values, names)))
    archive = ParetoArchive()
    archive.freeze(ReferencePoint.derive([entry.objectives for entry in entries], limits=reference_limits(names)))
    archive.add(entries)
    return archive


if __name__ == "__main__":
    main()
