"""Times of kernel cases on this machine: in turn, in interleaved rounds, medians and spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels.case import KernelCase
from evoquant.kernels.native import native, set_threads
from evoquant.kernels.workload import Run, workload

CASES_AT_ONCE = 48
"""Cases whose operands are in memory together, and whose repetitions are interleaved."""

FIRST_CACHE_BYTES = 65_536
"""Streamed through the first cache before each run of a kernel."""

CASES_IN_TURN = 12
MOST_PASSES = 8
"""Kernels that are timed in turn, and how often at most in a sample. A dozen products of small networks move more
memory than the second cache holds, and less than the third."""

_WARM_UP_SHARE = 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one case.

    Attributes:
        case: What was timed.
        median_ms: Median of the samples of a pass, of the fastest pass, milliseconds.
        iqr_ms: Distance of the quartiles of all samples, milliseconds.
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
    seconds_per_case: float = 0.03,
    repetitions: int = 5,
    passes: int = 3,
    seed: int = 0,
    isa: str | None = None,
) -> list[Timing]:
    """Time each case: ``repetitions`` rounds over all cases, each in another order, and all that ``passes`` times.

    Operands are random, from the seed. A few cases run in turn (``in_turn``), as kernels of a network do, until that
    took ``seconds_per_case / (passes · repetitions)`` for each of them, and the mean of the runs of a case is one
    sample. A machine that is slow for some seconds slows one pass of a case, so the fastest pass counts. Time it alone
    all the same: other work on the machine is measured too.

    Args:
        cases: What to time; equal cases are timed once for each mention.
        threads: Threads of the kernel pool; restored afterwards.
        seconds_per_case: Time to spend on each case, preparation aside.
        repetitions: Number of samples per case and pass.
        passes: How often the whole list is gone through.
        seed: Of the operands and the order.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Returns:
        One timing per case, in the order given.

    Raises:
        KernelError: If a case has no kernel or the native module is missing.
    """
    wanted = list(cases)
    if min(threads, repetitions, passes) < 1 or not seconds_per_case > 0:
        raise KernelError(
            f"measure: expected positive threads, repetitions, passes and seconds_per_case, but got {threads}, "
            f"{repetitions}, {passes} and {seconds_per_case}."
        )
    rng = np.random.default_rng(seed)
    seconds = seconds_per_case / (passes * repetitions)
    found: list[list[list[float]]] = [[] for _ in wanted]
    with _threads(threads):
        for _ in range(passes):
            for start in range(0, len(wanted), CASES_AT_ONCE):
                chunk = range(start, min(start + CASES_AT_ONCE, len(wanted)))
                runs = [workload(wanted[index], rng, isa=isa) for index in chunk]
                rounds = [in_turn(runs, rng, seconds=seconds) for _ in range(repetitions)]
                for index, samples in zip(chunk, zip(*rounds, strict=True), strict=True):
                    found[index].append(list(samples))
    return [timing(case, passed) for case, passed in zip(wanted, found, strict=True)]


def in_turn(runs: Sequence[Run], rng: np.random.Generator, *, seconds: float = math.inf) -> list[float]:
    """Milliseconds per run of each of several kernels, ``CASES_IN_TURN`` of which, at random, run one after the other.

    A kernel that runs over and over finds its weights and the memory of its result nearer than it does in a network,
    where others run in between. Its input is read before each run: there another kernel has just written it.

    Args:
        runs: See ``workload``.
        rng: Order.
        seconds: Time for each of them; there is at least one pass that counts, and at most ``MOST_PASSES``.
    """
    times = np.empty(len(runs))
    order = rng.permutation(len(runs))
    with _eviction(FIRST_CACHE_BYTES):
        for group in np.split(order, range(CASES_IN_TURN, len(order), CASES_IN_TURN)):
            first = [runs[index](1) for index in group]
            passes = max(1, min(MOST_PASSES, seconds * len(group) / max(sum(first), 1e-9)))
            times[group] = np.mean([[runs[index](1) for index in group] for _ in range(round(passes))], axis=0)
    return [1e3 * float(time) for time in times]


def interleave(
    runs: Sequence[Callable[[int], float]], seconds: float, repetitions: int, rng: np.random.Generator
) -> list[list[float]]:
    """Milliseconds per run of each of several things, sampled in turn in a random order.

    A part of each sample is run before, and not timed: threads that slept may share a core at first.

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
            runs[index](max(1, repeats[index] // _WARM_UP_SHARE))
            samples[index].append(1e3 * runs[index](repeats[index]) / repeats[index])
    return samples


def timing(case: KernelCase, passes: Sequence[Sequence[float]]) -> Timing:
    """Median and quartiles of the samples of some passes in milliseconds."""
    samples = tuple(chain.from_iterable(passes))
    low, high = np.percentile(samples, [25, 75])
    return Timing(case, min(float(np.median(each)) for each in passes), float(high - low), samples)


def _repeats(run: Callable[[int], float], seconds: float) -> int:
    count, taken = 1, run(1)
    while taken < seconds / _WARM_UP_SHARE:
        count *= 2
        taken = run(count)
    return max(1, round(count * seconds / taken))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = native().threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)


@contextmanager
def _eviction(size: int) -> Iterator[None]:
    native().set_eviction(size)
    try:
        yield
    finally:
        native().set_eviction(0)
