"""What a run will take, said before it starts."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence

from evoquant.config import Experiment
from evoquant.evaluate import IMAGE_SCORE, Workbench
from evoquant.run.events import Promised
from evoquant.space import uniform_plan

_BYTES_PER_PLAN_ENTRY = 420
"""What the journal stores for the precision of one operation, about."""

_BYTES_PER_IMAGE = IMAGE_SCORE.itemsize

_TIMED_BATCHES = 3


def promise(
    experiment: Experiment, seconds: Sequence[float], *, operations: int, images: int, targets: int = 1
) -> Promised:
    """Estimate from the times of a few evaluations.

    Args:
        experiment: The run.
        seconds: For each architecture the time of an evaluation on the selection images.
        operations: Operations of the model.
        images: Selection images.
        targets: Devices of the run: they share the search, and each has its own searches to compare with.
    """
    search, workers = experiment.search, experiment.evaluation.parallel_evaluations
    rounds = 1 + targets * len(search.baselines)
    evaluations = search.evaluations * rounds
    each = statistics.fmean(seconds)
    total = evaluations * each / workers
    if search.minutes is not None:
        total = min(total, 60 * search.minutes * rounds)
    processes = workers * max(1, len(experiment.architectures)) if experiment.evaluation.executor != "thread" else 0
    memory = peak_memory_mb() * (1 + processes)
    disk_mb = evaluations * (operations * _BYTES_PER_PLAN_ENTRY + images * _BYTES_PER_IMAGE) / 1e6
    return Promised(evaluations, each, total, disk_mb, memory)


def timed_promise(bench: Workbench) -> Promised:
    """Estimate from a few batches of the uniform 8-bit plan, before anything is evaluated."""
    model, images = bench.evaluator.copy_of_model(), bench.evaluator.images("selection")
    model.apply(uniform_plan(bench.captured.graph, 8, 8))
    model(images.batches[0])
    timed = images.batches[:_TIMED_BATCHES]
    started = time.perf_counter()
    for batch in timed:
        model(batch)
    each = (time.perf_counter() - started) / sum(map(len, timed))
    return promise(
        bench.experiment,
        [each * len(images.labels)],
        operations=len(bench.captured.graph.ops),
        images=len(images.labels),
        targets=len(bench.experiment.target.device),
    )


def peak_memory_mb() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
