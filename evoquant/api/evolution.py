"""A run as a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from evoquant.config import Effort, Experiment, load_experiment, validate, with_effort
from evoquant.data import ImageBatchSource
from evoquant.run import Listener, run_experiment
from evoquant.types.front import FrontDocument


async def run_evolution(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    run_dir: str | Path | None = None,
    effort: Effort = "default",
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
    on_event: Listener | None = None,
) -> FrontDocument:
    """Search the Pareto front of an experiment; a run that was stopped goes on where it stopped.

    Nothing blocks the event loop. If the coroutine is cancelled, the front found so far is in the run folder before
    ``asyncio.CancelledError`` is raised, and the same call goes on from there.

    Args:
        experiment: An experiment, its fields as a mapping, or the path of its YAML file.
        run_dir: The run folder; None: ``output.dir`` / ``name`` of the experiment.
        effort: Budget: ``quick``, ``default`` or ``extensive``.
        model: Used instead of the model that the experiment names.
        images: Used instead of its image sets: ``calibration``, ``selection`` and ``test``.
        on_event: Called with every event, in the thread of the event loop or of a worker.

    Returns:
        The front with its baselines, its knee and where it comes from; of several devices that of the first one, with
        the others as ``other_targets``.

    Raises:
        EvoQuantError: What is wrong, and what to do.
    """
    return await run_experiment(
        with_effort(as_experiment(experiment), effort),
        run_dir=None if run_dir is None else Path(run_dir),
        model=model,
        images=images,
        listener=on_event,
    )


def run_evolution_sync(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    run_dir: str | Path | None = None,
    effort: Effort = "default",
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
    on_event: Listener | None = None,
) -> FrontDocument:
    """``run_evolution`` for code without an event loop; same arguments, same result."""
    return asyncio.run(
        run_evolution(experiment, run_dir=run_dir, effort=effort, model=model, images=images, on_event=on_event)
    )


def as_experiment(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    """An experiment, whatever form it was given in."""
    if isinstance(experiment, Experiment):
        return experiment
    if isinstance(experiment, str | Path):
        return load_experiment(experiment)
    return validate(Experiment, experiment)
