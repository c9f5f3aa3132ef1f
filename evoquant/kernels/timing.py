"""Times of kernel cases on this machine: interleaved rounds, medians and spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels.case import KernelCase
from evoquant.kernels.native import native, set_threads
from evoquant.kernels.workload import workload

CASES_AT_ONCE = 48
"""Cases whose operands are in memory together, and whose repetitions are interleaved."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one case.

    Attributes:
        case: What was timed.
        median_ms: Median of the samples, milliseconds.
        iqr_ms: Distance of their quartiles, milliseconds.
        samples: Milliseconds per run, in the order they were taken.
    """

    case: KernelCase
    median_ms: float
    iqr_ms: float
    samples: tuple[float, ...]


def measure(
    cases: Iterable[KernelCase],
    *,
    threads: int = 1,
    seconds_per_case: float = 0.02,
    repetitions: int = 7,
    seed: int = 0,
    isa: str | None = None,
    evict_bytes: int = 0,
) -> list[Timing]:
    """Time each case: ``repetitions`` rounds over all cases, each round in another random order.

    Operands are random, from the seed. One round runs a case as often as fits into
    ``seconds_per_case / repetitions``, at least once, and takes the mean of these runs as one sample. Time it alone:
    other work on the machine is measured too.

    Args:
        cases: What to time; equal cases are timed once for each mention.
        threads: Threads of the kernel pool; restored afterwards.
        seconds_per_case: Time to spend on each case, preparation aside.
        repetitions: Number of samples per case.
        seed: Of the operands and the order.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.
        evict_bytes: Memory that is streamed through the caches before every run, after which the input is read
            again. 0 keeps weights in the cache from run to run; a network whose weights exceed the cache does not.

    Returns:
        One timing per case, in the order given.

    Raises:
        KernelError: If a case has no kernel or the native module is missing.
    """
    wanted = list(cases)
    if threads < 1 or repetitions < 1 or not seconds_per_case > 0:
        raise KernelError(
            f"measure: expected positive threads, repetitions and seconds_per_case, but got {threads}, "
            f"{repetitions} and {seconds_per_case}."
        )
    rng = np.random.default_rng(seed)
    timings: list[Timing] = []
    with _settings(threads, evict_bytes):
        for start in range(0, len(wanted), CASES_AT_ONCE):
            chunk = wanted[start : start + CASES_AT_ONCE]
            runs = [workload(case, rng, isa=isa) for case in chunk]
            samples = interleave(runs, seconds_per_case / repetitions, repetitions, rng)
            timings += [timing(case, values) for case, values in zip(chunk, samples, strict=True)]
    return timings


def interleave(
    runs: Sequence[Callable[[int], float]], seconds: float, repetitions: int, rng: np.random.Generator
) -> list[list[float]]:
    """Milliseconds per run of each of several things, sampled in turn in a random order.

    Args:
        runs: Each takes a number of repetitions and returns the seconds they took.
        seconds: Length of one sample.
        repetitions: Samples of each.
        rng: Order of each round.
    """
    repeats = [_repeats(run, seconds) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(repetitions):
        for index in rng.permutation(len(runs)):
            samples[index].append(1e3 * runs[index](repeats[index]) / repeats[index])
    return samples


def timing(case: KernelCase, samples: Sequence[float]) -> Timing:
    """Median and quartiles of samples in milliseconds."""
    low, median, high = np.percentile(samples, [25, 50, 75])
    return Timing(case, float(median), float(high - low), tuple(samples))


def _repeats(run: Callable[[int], float], seconds: float) -> int:
    run(1)
    once = min(run(1), run(1))
    return max(1, round(seconds / max(once, 1e-7)))


@contextmanager
def _settings(threads: int, evict_bytes: int) -> Iterator[None]:
    module = native()
    before = module.threads()
    set_threads(threads)
    module.set_eviction(evict_bytes)
    try:
        yield
    finally:
        module.set_eviction(0)
        set_threads(before)
