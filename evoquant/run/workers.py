"""What runs inside a worker, and workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import platform
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from evoquant.config import Experiment
from evoquant.errors import RunError
from evoquant.evaluate import AccuracyEvaluator, Plan, Scores, prepare
from evoquant.run.executors import WorkerDiedError


class PreparedExperiment:
    """The experiment inside a worker, prepared there by the first plan.

    Args:
        experiment: What to prepare.
        identity: What the run prepared; a worker that has something else may not answer.
    """

    def __init__(self, experiment: Experiment, identity: Mapping[str, str]) -> None:
        self._experiment, self._identity = experiment, dict(identity)
        self._evaluator: AccuracyEvaluator | None = None

    def answer(self, plan: Plan, split: str, images: slice) -> Scores | Exception:
        """The scores of a plan, or the error that it ended with, for the run to raise."""
        try:
            self._evaluator = self._evaluator or self._prepare()
            return self._evaluator.scores(plan, split=split, images=images)
        except Exception as error:  # an exception that left the worker as one would end it
            return error

    def _prepare(self) -> AccuracyEvaluator:
        where = f"The worker on {platform.node()}"
        try:
            bench = prepare(self._experiment)
        except Exception as error:  # of any kind: it must end the run, not count as a plan that failed
            raise RunError(f"{where} cannot prepare the experiment: {type(error).__name__}: {error}") from error
        others = [name for name, value in self._identity.items() if bench.identity.get(name) != value]
        if others:
            raise RunError(
                f"{where} prepared something else than the run: {', '.join(others)} differ. Model and images must be "
                "the same files at the same paths on every machine, and so should be the folder EVOQUANT_CACHE."
            )
        return bench.evaluator


class ProcessWorker:
    """A process of this machine that prepares the experiment on its own.

    Args:
        experiment: What to prepare.
        identity: What the run prepared.
    """

    def __init__(self, experiment: Experiment, identity: Mapping[str, str]) -> None:
        self._task = (experiment, dict(identity))
        self._process: SpawnProcess | None = None

    def ask(self, plan: Plan, split: str, images: slice) -> Scores | Exception:
        """The scores of a plan, or why there are none."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None
        try:
            self._pipe.send((dict(plan), split, images))
            answer: Scores | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerDiedError(f"the last process ended with code {self._process.exitcode}.") from error
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._task), daemon=True)
        process.start()
        theirs.close()
        self._process = process

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, experiment: Experiment, identity: Mapping[str, str]) -> None:
    """Answer plans until the run closes its end of the pipe; an interrupt from the keyboard is for the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepared = PreparedExperiment(experiment, identity)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(prepared.answer(*pipe.recv()))
