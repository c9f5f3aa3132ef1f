"""What judging every choice of every group costs, and how well it ranks plans: the Fisher form beside probes.

    python experiments/sensitivity_metrics.py experiments/deit_tiny_imagenet.yaml --images 64 --without-probes

Both tables are made for all choices of the experiment's space, after all weights are quantized. Their costs are stated
as shares of what as many probes cost that start from the input. Each then predicts the divergence of random plans, and
of plans from integer programming, by adding up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from evoquant.config import Experiment, load_experiment
from evoquant.evaluate import SENSITIVITY_TABLES, ProbeTable, Workbench, prepare
from evoquant.hardware import CostModel, load_device
from evoquant.run import build_space
from evoquant.run.latency import open_latency_model
from evoquant.run.searchers import SearcherFactory
from evoquant.search import AdditiveModel, GenomeDomain
from evoquant.space import SearchSpace, uniform_plan


def timed_table(bench: Workbench, space: SearchSpace, metric: str, images: int) -> ProbeTable:
    """A table, with what it cost printed."""
    bench.evaluator.evaluate(uniform_plan(space.graph, 8, 8), split="selection")
    started = time.perf_counter()
    bench.evaluator.evaluate(uniform_plan(space.graph, 8, 8), split="selection")
    per_image = (time.perf_counter() - started) / len(bench.evaluator.images("selection").labels)
    started = time.perf_counter()
    table = SENSITIVITY_TABLES[metric](bench.evaluator, space, images=images)
    seconds = time.perf_counter() - started
    share = seconds / (table.full_passes * per_image)
    print(
        f"{metric}: {table.probes} sides of choices, {table.images} images, {seconds:.1f} s; "
        f"{table.passes / table.full_passes:.4f} of the multiplications and {share:.4f} of the time of probes from the "
        "input",
        flush=True,
    )
    return table


def sampled(experiment: Experiment, bench: Workbench, space: SearchSpace, table: ProbeTable, plans: int) -> np.ndarray:
    """Random genomes and as many from integer programming."""
    device = load_device(experiment.target.device[0])
    costs = CostModel(
        space.graph, device, open_latency_model(experiment.target, device, space.graph, space.reachable())
    )
    factory = SearcherFactory(experiment, space, costs, bench.classes, table)
    rng, bounds = np.random.default_rng(0), GenomeDomain.of_space(space).upper_bounds + 1
    drawn = [space.repair(rng.integers(0, bounds)) for _ in range(plans)]
    programmed = [genes for _, genes in factory.programmed(-(-plans // (len(factory.cost_tables) + 1)))][:plans]
    return np.array([*drawn, *programmed])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--images", type=int, default=32, help="of each table")
    parser.add_argument("--selection", type=int, default=128, help="images that plans are evaluated on")
    parser.add_argument("--plans", type=int, default=40, help="random ones, and as many programmed ones")
    parser.add_argument("--without-probes", action="store_true", help="the Fisher form alone")
    chosen = parser.parse_args(arguments)
    experiment = load_experiment(chosen.experiment)
    selection = experiment.data.selection.model_copy(update={"count": max(chosen.selection, chosen.images)})
    experiment = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"selection": selection}),
            "target": experiment.target.model_copy(update={"latency": "roofline", "latency_table": None}),
        }
    )
    bench = prepare(experiment)
    space = build_space(experiment, bench.captured.graph, load_device(experiment.target.device[0]))
    started = time.perf_counter()
    SENSITIVITY_TABLES["fisher"](bench.evaluator, space, images=1)
    print(f"{space.graph.model}: all weights quantized in {time.perf_counter() - started:.1f} s", flush=True)
    metrics = ("fisher",) if chosen.without_probes else ("fisher", "kl")
    tables = {metric: timed_table(bench, space, metric, chosen.images) for metric in metrics}
    if len(tables) == 2:
        flat = [np.concatenate([np.array(values) for values in table.errors]) for table in tables.values()]
        print(f"rank correlation of the two tables: {spearmanr(*flat).statistic:.3f}")
    genomes = sampled(experiment, bench, space, tables["fisher"], chosen.plans)
    evaluated = np.array([bench.evaluator.evaluate(space.decode(genes), split="selection").kl for genes in genomes])
    for metric, table in tables.items():
        model = AdditiveModel(GenomeDomain.of_space(space), tuple(np.array(values) for values in table.errors))
        predicted = model.predict(genomes)
        random, programmed, all_plans = (
            spearmanr(predicted[part], evaluated[part]).statistic
            for part in (slice(chosen.plans), slice(chosen.plans, None), slice(None))
        )
        print(
            f"{metric}: rank correlation of predicted and evaluated divergence {random:.3f} (random plans), "
            f"{programmed:.3f} (programmed plans), {all_plans:.3f} (all {len(genomes)})"
        )


if __name__ == "__main__":
    main()
