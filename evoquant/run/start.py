"""Starting or resuming a run: its folder, its identity, its costs, its workers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from evoquant.config import Experiment, experiment_to_yaml, load_yaml, validate
from evoquant.data import ImageBatchSource
from evoquant.errors import ConfigurationError, RunError, UnknownNameError
from evoquant.evaluate import Workbench, prepare
from evoquant.hardware import CostModel, Device, LatencyModel, legaliser, load_device
from evoquant.resources import folder
from evoquant.run import events
from evoquant.run.executors import Executor, ProcessExecutor, ThreadExecutor
from evoquant.run.journal import Journal
from evoquant.run.latency import open_latency_model
from evoquant.run.session import Session
from evoquant.space import SearchSpace, SpaceSpec, presets
from evoquant.types import LayerQuantConfig, ModelGraph
from evoquant.types.front import FrontDocument

PACKAGES = ("evoquant", "torch", "timm", "pymoo", "numpy")


async def run_experiment(
    experiment: Experiment,
    *,
    run_dir: Path | None = None,
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
    listener: events.Listener | None = None,
) -> FrontDocument:
    """Run an experiment to its end, or go on where an earlier session of it stopped.

    Args:
        experiment: What to run.
        run_dir: The run folder; None: ``output.dir`` / ``name``.
        model: Used instead of the model that the experiment names.
        images: Used instead of its image sets: ``calibration``, ``selection`` and ``test``.
        listener: Told what happens.

    Returns:
        The front; the run folder holds it too.

    Raises:
        RunError: If the folder belongs to another run, or cannot be written.
        EvoQuantError: If model, images, space or device are not what the experiment needs.
    """
    tell = listener or _ignore
    run_folder = experiment.output.dir / experiment.name if run_dir is None else run_dir

    def notify(stage: str, detail: str) -> None:
        tell(events.StageStarted(stage, detail))

    bench = await asyncio.to_thread(prepare, experiment, model=model, images=images, notify=notify)
    device = load_device(experiment.target.device[0])
    space = build_space(experiment, bench.captured.graph, device)
    with _journal(run_folder, _identity(bench, space, device)) as journal:
        notify("latency", f"{experiment.target.latency} on {device.name}")
        latency = await asyncio.to_thread(_latency_model, experiment, device, space, run_folder)
        costs = CostModel(bench.captured.graph, device, latency)
        kind = "measured" if experiment.target.latency == "measured" else "predicted"
        provenance = _provenance(experiment, bench, device, kind)
        _write_once(run_folder / "config.yaml", experiment_to_yaml(experiment))
        _write_once(run_folder / "manifest.json", json.dumps(provenance, indent=1) + "\n")
        executor = _executor(bench, is_named=model is None and images is None)
        try:
            session = Session(
                bench,
                space,
                costs,
                folder=run_folder,
                executor=executor,
                journal=journal,
                listener=tell,
                provenance=provenance,
            )
            return await session.run()
        finally:
            executor.close()


def build_space(experiment: Experiment, graph: ModelGraph, device: Device) -> SearchSpace:
    """The search space of an experiment on a device.

    Raises:
        UnknownNameError: If no shipped space has that name.
        ConfigurationError: If the space is malformed or leaves a group without a legal choice.
    """
    return SearchSpace.build(read_space(experiment.space), graph, legal=legaliser(device))


def read_space(source: str | Mapping[str, Any]) -> SpaceSpec:
    """A search space by the name of a shipped file, by path, or as a mapping."""
    if not isinstance(source, str):
        return validate(SpaceSpec, source)
    if "/" in source or source.endswith((".yaml", ".yml")):
        return validate(SpaceSpec, load_yaml(source))
    shipped = {path.stem: path for path in folder("search_spaces").glob("*.yaml")}
    if source not in shipped:
        raise UnknownNameError("search space", source, shipped)
    return validate(SpaceSpec, load_yaml(shipped[source]))


def _ignore(_event: events.Event) -> None:
    """Nobody listens."""


def _latency_model(experiment: Experiment, device: Device, space: SearchSpace, run_folder: Path) -> LatencyModel:
    """The latency model; what was measured is kept with the run, so that a resumed run sees the same times."""
    return open_latency_model(
        experiment.target, device, space.graph, reachable(space), kept=run_folder / "latency_table.json"
    )


def reachable(space: SearchSpace) -> dict[str, set[LayerQuantConfig]]:
    """For each operation, the precisions that the space and the baselines give it."""
    found = {name: set(configs) for name, configs in space.reachable().items()}
    for plan in presets(space.graph).values():
        for name, config in plan.items():
            found[name].add(config)
    return found


def _executor(bench: Workbench, *, is_named: bool) -> Executor:
    spec = bench.experiment.evaluation
    if spec.executor == "thread":
        return ThreadExecutor(bench, spec.parallel_evaluations)
    if spec.executor == "process":
        if not is_named:
            raise ConfigurationError(
                "Worker processes load model and images by name, but these were given as objects. Use "
                "evaluation.executor: thread."
            )
        return ProcessExecutor(bench.experiment, spec.parallel_evaluations)
    raise ConfigurationError(f"evaluation.executor '{spec.executor}' is not built in. Use thread or process.")


@contextmanager
def _journal(run_folder: Path, identity: Mapping[str, str]) -> Iterator[Journal]:
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot make the run folder {run_folder}: {error}. Choose another with --run-dir.") from error
    with Journal(run_folder / "journal.sqlite") as journal:
        journal.claim(identity)
        yield journal


def _identity(bench: Workbench, space: SearchSpace, device: Device) -> dict[str, str]:
    axes = [(group.name, repr(table.axes)) for group, table in zip(space.groups, space.tables, strict=True)]
    return {
        **bench.identity,
        "space": hashlib.sha256(json.dumps(axes).encode()).hexdigest(),
        "device": hashlib.sha256(device.model_dump_json().encode()).hexdigest(),
    }


def _provenance(experiment: Experiment, bench: Workbench, device: Device, latency_kind: str) -> dict[str, Any]:
    norms = bench.captured.batch_norms
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "command": " ".join(sys.argv),
        "seed": experiment.search.seed,
        "hashes": dict(bench.identity),
        "device": device.name,
        "quantized": "both operands of every convolution, linear layer and attention matmul; all else stays float",
        "latency_kind": latency_kind,
        "batch_norms": {"folded": norms.folded, "remaining": list(norms.remaining)},
        "preparation": json.loads(json.dumps(bench.preparation.to_dict())),
    }


def _write_once(path: Path, text: str) -> None:
    """Write a file of the run unless an earlier session has."""
    if path.exists():
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error}.") from error
