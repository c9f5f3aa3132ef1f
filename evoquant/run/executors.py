"""Where evaluations run: threads of this process, or worker processes. A plan has the same answer wherever it runs."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from threading import Event
from typing import Protocol

from evoquant.config import Experiment
from evoquant.errors import RunError
from evoquant.evaluate import ALL_IMAGES, AccuracyEvaluator, Plan, Scores, Workbench, prepare
from evoquant.types import LayerQuantConfig


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


_WORKER: AccuracyEvaluator | None = None


def _start_worker(experiment: str) -> None:
    global _WORKER
    _WORKER = prepare(Experiment.model_validate_json(experiment)).evaluator


def _evaluate_in_worker(plan: dict[str, LayerQuantConfig], split: str, images: slice) -> Scores:
    assert _WORKER is not None, "the initializer of the pool prepares the worker"
    return _WORKER.scores(plan, split=split, images=images)


class ProcessExecutor:
    """Evaluations in worker processes that prepare the experiment on their own.

    A worker that dies is replaced, and its evaluation is made again once.
    """

    def __init__(self, experiment: Experiment, size: int) -> None:
        self.size = size
        self._experiment = experiment.model_dump_json()
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.size,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self._experiment,),
        )

    async def evaluate(self, plan: Plan, *, split: str, images: slice = ALL_IMAGES) -> Scores:
        """Score one plan on some images of the named set, in whole batches.

        Raises:
            RunError: If two workers died of the same plan.
        """
        loop = asyncio.get_running_loop()
        for _ in range(2):
            pool = self._pool
            try:
                return await loop.run_in_executor(pool, _evaluate_in_worker, dict(plan), split, images)
            except BrokenProcessPool:
                if self._pool is pool:
                    pool.shutdown(wait=False)
                    self._pool = self._start()
        raise RunError("Two worker processes died while they evaluated this plan; out of memory? Use fewer workers.")

    def stop(self) -> None:
        """Kill the workers."""
        for process in list(self._pool._processes.values()):
            process.kill()

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
