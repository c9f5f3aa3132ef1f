"""Times of packed models, and of the kernels that they consist of, taken in the same rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from evoquant import kernels
from evoquant.deploy.packed_model import PackedModel
from evoquant.errors import KernelError
from evoquant.hardware.measured import MeasuredLatency
from evoquant.hardware.table import Case, Entry, LatencyTable, key_of
from evoquant.kernels.native import native
from evoquant.kernels.timing import in_turn, interleave
from evoquant.kernels.workload import workload
from evoquant.types import ModelGraph

Run = Callable[[int], float]
"""Takes a number of repetitions, returns the seconds they took."""


QUARTILE = 25
PLACEMENTS = 3
"""So often kernels are given new operands: some places in memory cost a kernel a third more."""
WARM_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one inference at batch size 1.

    Attributes:
        median_ms: Median of the samples, milliseconds.
        iqr_ms: Distance of their quartiles, milliseconds.
        fastest_ms: The smallest sample: what remains when nothing else runs.
        threads: Threads of the kernels.
        samples: Milliseconds, in the order they were taken.
    """

    median_ms: float
    iqr_ms: float
    fastest_ms: float
    threads: int
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float], threads: int) -> Latency:
        """Summarise samples in milliseconds."""
        low, median, high = np.percentile(samples, [25, 50, 75])
        return cls(float(median), float(high - low), float(min(samples)), threads, tuple(samples))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "median_ms": self.median_ms,
            "iqr_ms": self.iqr_ms,
            "fastest_ms": self.fastest_ms,
            "threads": self.threads,
            "samples": list(self.samples),
        }


def measure_packed(
    model: PackedModel,
    image: Tensor,
    *,
    threads: int = 1,
    repetitions: int = 15,
    seconds_per_sample: float = 0.02,
    seed: int = 0,
) -> Latency:
    """Time one packed model on one image, the image's way into its memory included.

    Args:
        model: What to time.
        image: (1, channels, height, width), float32.
        threads: Threads of the kernels; restored afterwards.
        repetitions: Number of samples.
        seconds_per_sample: Length of one; at least one inference.
        seed: Of the order of the rounds.
    """
    run = {"model": model.timer(image)}
    return measure_together(run, threads=threads, repetitions=repetitions, seconds=seconds_per_sample, seed=seed)[
        "model"
    ]


def measure_together(
    runs: Mapping[str, Run], *, threads: int, repetitions: int = 15, seconds: float = 0.02, seed: int = 0
) -> dict[str, Latency]:
    """Time several things in the same rounds, each round in another random order; see ``clock_of``."""
    clock = clock_of(threads)
    timed = [_timed(run, clock) for run in runs.values()]
    with kernel_threads(threads):
        samples = interleave(timed, seconds, repetitions, np.random.default_rng(seed))
    return {name: Latency.of(values, threads) for name, values in zip(runs, samples, strict=True)}


def clock_of(threads: int) -> Callable[[], float]:
    """With one thread the time that it computed, without that of other programs on its core; with more, wall time.

    Where nothing else runs, both are the same.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def clock_name(threads: int) -> str:
    """``cpu`` or ``wall``; see ``clock_of``."""
    return "cpu" if threads == 1 else "wall"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A packed model beside the sum of its kernels, timed in the same rounds.

    Attributes:
        model: Times of the whole model.
        table_ms: Sum of the times of its kernels, the lower quartile of each: what other programs take of a sample
            does not count.
        clock: Of the whole model; see ``clock_of``.
    """

    model: Latency
    table_ms: float
    clock: str

    @property
    def measured_ms(self) -> float:
        """Time of the whole model, by the same quartile as the kernels."""
        return float(np.percentile(self.model.samples, QUARTILE))

    @property
    def ratio(self) -> float:
        """Sum over measurement."""
        return self.table_ms / self.measured_ms


def compare_with_table(
    models: Mapping[str, PackedModel],
    image: Tensor,
    latency: MeasuredLatency,
    cases: Mapping[str, Sequence[Case]],
    graph: ModelGraph,
    *,
    threads: int = 1,
    isa: str | None = None,
    rounds: int = 15,
    seconds: float = 0.01,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Time whole models and all their kernels in the same rounds, so that both see the same machine.

    Kernels that are executed alike are timed once.

    Args:
        models: Packed models of one graph.
        image: What they are timed on.
        latency: Says how a plan becomes a sum of cases; its table is not used.
        cases: The kernels of each model.
        graph: The graph that all models have.
        threads: Threads of the kernels.
        isa: Instruction set of the kernels, that of the models; None takes the best, capped by ``EVOQUANT_ISA``.
        rounds: Samples of each kernel and model.
        seconds: Length of a sample of a model; at least one run.
        seed: Of operands and order.
    """
    rng = np.random.default_rng(seed)
    used = isa or kernels.info().used
    wanted = {
        key_of(case): kernels.executed_as(_kernel_case(case), used) for case in chain.from_iterable(cases.values())
    }
    clock = clock_of(threads)
    runs = {name: _warm(_timed(model.timer(image), clock)) for name, model in models.items()}
    of_models: list[list[float]] = [[] for _ in runs]
    times = dict.fromkeys(wanted.values(), math.inf)
    with kernel_threads(threads):
        for part in np.array_split(np.arange(rounds), min(PLACEMENTS, rounds)):
            kernel_runs = [workload(case, rng, isa=isa) for case in times]
            of_kernels = []
            for _ in part:
                for found, taken in zip(of_models, interleave(list(runs.values()), seconds, 1, rng), strict=True):
                    found += taken
                of_kernels.append(in_turn(kernel_runs, rng))
            for case, found_ms in zip(times, np.percentile(of_kernels, QUARTILE, axis=0), strict=True):
                times[case] = min(times[case], float(found_ms))
    table = LatencyTable({}, threads, {key: Entry(times[case], 0.0) for key, case in wanted.items()})
    sums = MeasuredLatency(table, latency.device, latency.kernels)
    return {
        name: Comparison(Latency.of(taken, threads), sums.latency(graph, models[name].plan).ms, clock_name(threads))
        for name, taken in zip(runs, of_models, strict=True)
    }


def _timed(run: Run, clock: Callable[[], float]) -> Run:
    """The same by another clock."""

    def timed(repeats: int) -> float:
        start = clock()
        run(repeats)
        return clock() - start

    return timed


def _warm(run: Run) -> Run:
    """The same after a few runs that are not timed, so that no sample pays for what ran before it in the round."""

    def warmed(repeats: int) -> float:
        run(WARM_REPEATS)
        return run(repeats)

    return warmed


def _kernel_case(case: Case) -> kernels.KernelCase:
    return kernels.KernelCase(case.op, tuple(case.shape), case.precision)


@contextmanager
def kernel_threads(threads: int) -> Iterator[None]:
    """So many threads of the kernels for a while.

    Raises:
        KernelError: If the number is not positive.
    """
    if threads < 1:
        raise KernelError(f"threads must be at least 1, but got {threads}.")
    before = native().threads()
    kernels.set_threads(threads)
    try:
        yield
    finally:
        kernels.set_threads(before)
