"""Workers that are actors of a Ray cluster, on this machine or on several."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from evoquant.config import EvaluationSpec, Experiment
from evoquant.errors import ConfigurationError, RunError
from evoquant.evaluate import Plan, Scores
from evoquant.run.executors import WorkerDiedError
from evoquant.run.workers import PreparedExperiment

START_SECONDS = 300
"""How long an actor may wait for its place in the cluster and for its process."""

OBJECT_STORE_BYTES = 100_000_000
"""Shared memory of a cluster of our own: plans and judgements are a few kilobytes each."""


def import_ray() -> Any:  # noqa: ANN401
    """The module ``ray``.

    Raises:
        ConfigurationError: If it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"evaluation.executor: ray needs Ray ({error}). Install it with: pip install 'evoquant[ray]'"
        ) from error


@asynccontextmanager
async def ray_cluster(spec: EvaluationSpec) -> AsyncIterator[None]:
    """A cluster with room for the evaluations.

    A cluster that this process is connected to already is taken and left as it is; otherwise ``ray_address`` is
    joined, or, where there is none, a cluster of this machine started that ends with the context.

    Raises:
        ConfigurationError: If Ray is missing, nothing answers at the address, or the cluster has too few CPUs.
    """
    ray = import_ray()
    if ray.is_initialized():
        _check_room(ray, spec)
        yield
        return
    # Not in the main thread, where Ray would take over SIGTERM, nor in one of ours: a cluster ends with its thread, and
    # those of the event loop last as long as the loop.
    await asyncio.to_thread(_connect, ray, spec)
    try:
        _check_room(ray, spec)
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, spec: EvaluationSpec) -> None:  # noqa: ANN401
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if spec.ray_address is None:
        cpus = spec.parallel_evaluations * spec.threads
        ray.init("local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return
    try:
        ray.init(spec.ray_address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"evaluation.ray_address: no Ray cluster can be joined at '{spec.ray_address}': {error}"
        ) from error


def _check_room(ray: Any, spec: EvaluationSpec) -> None:  # noqa: ANN401
    needed = spec.parallel_evaluations * spec.threads
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < needed:
        raise ConfigurationError(
            f"evaluation.parallel_evaluations: {spec.parallel_evaluations} with {spec.threads} threads each need "
            f"{needed} CPUs, but the Ray cluster has {cpus}. Use at most {cpus // spec.threads}."
        )


class RayWorker:
    """An actor that prepares the experiment on its own, with as many CPUs as an evaluation has threads.

    Args:
        experiment: What to prepare.
        identity: What the run prepared.
    """

    def __init__(self, experiment: Experiment, identity: Mapping[str, str]) -> None:
        self._ray = import_ray()
        self._task = (experiment, dict(identity))
        self._cpus = experiment.evaluation.threads
        self._actor: Any = None

    def ask(self, plan: Plan, split: str, images: slice) -> Scores | Exception:
        """The scores of a plan, or why there are none."""
        errors = self._ray.exceptions
        try:
            if self._actor is None:
                self._start()
            answer: Scores | Exception = self._ray.get(self._actor.answer.remote(dict(plan), split, images))
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            self._actor = None
            raise WorkerDiedError(str(error)) from error
        except errors.RayError as error:
            raise RunError(f"The Ray cluster failed: {error}") from error
        return answer

    def _start(self) -> None:
        settings = {name: value for name, value in os.environ.items() if name.startswith("EVOQUANT_")}
        actor_class = self._ray.remote(num_cpus=self._cpus, max_restarts=0, runtime_env={"env_vars": settings})(
            PreparedExperiment
        )
        self._actor = actor_class.remote(*self._task)
        ready, _ = self._ray.wait([self._actor.__ray_ready__.remote()], timeout=START_SECONDS)
        if not ready:
            self.kill()
            raise RunError(
                f"No place for a worker was free in the Ray cluster within {START_SECONDS} s; free CPUs: "
                f"{self._ray.available_resources().get('CPU', 0):g}. Use a smaller evaluation.parallel_evaluations."
            )

    def kill(self) -> None:
        """End the actor at once."""
        if self._actor is not None:
            self._ray.kill(self._actor)
