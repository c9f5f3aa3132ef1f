"""Where evaluations run: in this process or outside it. A plan has the same answer wherever it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Protocol

from evoquant.errors import RunError
from evoquant.evaluate import ALL_IMAGES, AccuracyEvaluator, Plan, Scores, Workbench

ATTEMPTS = 2
"""How many workers may die of one plan before the run ends."""


class Executor(Protocol):
    """Evaluates plans, at most ``size`` at a time; the answer depends on the plan alone."""

    size: int

    async def evaluate(self, plan: Plan, *, split: str, images: slice = ALL_IMAGES) -> Scores:
        """Score one plan on some images of the named set, in whole batches."""

    def stop(self) -> None:
        """Give up what runs and what waits, as soon as possible."""

    def close(self) -> None:
        """Free the workers."""


class ThreadExecutor:
    """Evaluations in threads of this process, each with its own copy of the simulated program.

    Weights and images are shared. torch releases the interpreter while it computes, so two threads use two cores.
    """

    def __init__(self, bench: Workbench, size: int) -> None:
        self.size = size
        self._stop = Event()
        self._free: SimpleQueue[AccuracyEvaluator] = SimpleQueue()
        self._free.put(bench.evaluator)
        for _ in range(size - 1):
            self._free.put(bench.evaluator.clone())
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="evaluate")

    async def evaluate(self, plan: Plan, *, split: str, images: slice = ALL_IMAGES) -> Scores:
        """Score one plan on some images of the named set, in whole batches."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._evaluate, plan, split, images)

    def _evaluate(self, plan: Plan, split: str, images: slice) -> Scores:
        evaluator = self._free.get()
        try:
            return evaluator.scores(plan, split=split, images=images, stop=self._stop)
        finally:
            self._free.put(evaluator)

    def stop(self) -> None:
        """Stop at the next batch of images."""
        self._stop.set()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class WorkerDiedError(Exception):
    """A worker ended before it answered; the message says what is known of it."""


class Worker(Protocol):
    """Judges plans outside this process, one at a time.

    It is started by its first plan, and by the first one after it died or was killed.
    """

    def ask(self, plan: Plan, split: str, images: slice) -> Scores | Exception:
        """The scores of a plan, or why there are none.

        Raises:
            WorkerDiedError: If the worker ended before it answered.
            RunError: If it cannot be started.
        """

    def kill(self) -> None:
        """End it at once; whoever waits for its answer hears that it died."""


class WorkerExecutor:
    """Evaluations by workers outside this process; a thread of this process waits for each.

    A worker that dies is started again and its evaluation made again once; the others are not concerned.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.size = len(workers)
        self._stop = Event()
        self._workers = tuple(workers)
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="evaluate")

    async def evaluate(self, plan: Plan, *, split: str, images: slice = ALL_IMAGES) -> Scores:
        """Score one plan on some images of the named set, in whole batches.

        Raises:
            RunError: If the plan's worker died twice.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._evaluate, plan, split, images)

    def _evaluate(self, plan: Plan, split: str, images: slice) -> Scores:
        worker = self._free.get()
        try:
            answer = self._ask(worker, plan, split, images)
        finally:
            self._free.put(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, worker: Worker, plan: Plan, split: str, images: slice) -> Scores | Exception:
        deaths: list[WorkerDiedError] = []
        while len(deaths) < ATTEMPTS:
            if self._stop.is_set():
                raise RunError("The evaluation was stopped.")
            try:
                return worker.ask(plan, split, images)
            except WorkerDiedError as error:
                deaths.append(error)
        raise RunError(
            f"{ATTEMPTS} workers died while they evaluated the same plan: {deaths[-1]} Out of memory? Use a smaller "
            "evaluation.parallel_evaluations. The same command goes on from here."
        ) from deaths[-1]

    def stop(self) -> None:
        """Kill the workers."""
        self._stop.set()
        for worker in self._workers:
            worker.kill()

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.stop()
