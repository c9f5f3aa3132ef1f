"""Starting or resuming a run: its folder, its identity, its costs, its workers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from evoquant.config import Experiment, experiment_hash, experiment_to_yaml
from evoquant.data import ImageBatchSource
from evoquant.errors import ConfigurationError, RunError
from evoquant.evaluate import Workbench, prepare, standings
from evoquant.hardware import Device
from evoquant.run import events
from evoquant.run.contest import Contender, first_evaluations
from evoquant.run.evaluations import Evaluations
from evoquant.run.executors import Executor, ThreadExecutor, WorkerExecutor
from evoquant.run.front_search import FrontSearch
from evoquant.run.journal import Journal
from evoquant.run.ray_workers import RayWorker, import_ray, ray_cluster
from evoquant.run.session import Session, Subject, shares
from evoquant.run.space import build_space, read_space
from evoquant.run.target_search import Spent, TargetSearch
from evoquant.run.targets import Target, latency_table, load_devices, open_target, target_folders
from evoquant.run.warm_start import read_earlier
from evoquant.run.workers import ProcessWorker
from evoquant.search import ParetoArchive
from evoquant.space import SearchSpace
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
        The front; of several devices that of the first one, with the others as ``other_targets``. The run folder holds
        them too.

    Raises:
        RunError: If the folder belongs to another run, or cannot be written.
        EvoQuantError: If model, images, space or device are not what the experiment needs.
    """
    is_named = model is None and images is None
    _check_executor(experiment.evaluation.executor, is_named=is_named)
    if experiment.architectures and not is_named:
        raise ConfigurationError(
            "Architectures are made by name, each with images of its own size, but a model or images were given as "
            "objects. Name them in the experiment, or leave its architectures out."
        )
    tell = listener or _ignore
    run_folder = experiment.output.dir / experiment.name if run_dir is None else run_dir

    def notify(stage: str, detail: str) -> None:
        tell(events.StageStarted(stage, detail))

    devices = load_devices(experiment)
    read_space(experiment.space)  # wrong devices, spaces and runs are refused before minutes go into the model
    if experiment.search.warm_start is not None:
        read_earlier(experiment.search.warm_start)
    benches: dict[str | None, Workbench] = {}
    for name, alone in experiment.by_architecture().items():
        if name is not None:
            notify("architecture", name)
        benches[name] = await asyncio.to_thread(prepare, alone, model=model, images=images, notify=notify)
    spaces = {
        name: [build_space(experiment, bench.captured.graph, device) for device in devices.values()]
        for name, bench in benches.items()
    }
    folders = target_folders(run_folder, devices)
    with _journal(run_folder, _identity(experiment, benches, spaces, list(devices.values()))) as journal:
        targets = {
            name: await _open_targets(experiment, name, bench, devices, spaces[name], folders, notify)
            for name, bench in benches.items()
        }
        provenances = [
            _provenance(experiment, benches, {name: opened[index] for name, opened in targets.items()})
            for index in range(len(devices))
        ]
        for index, (own, provenance) in enumerate(zip(folders, provenances, strict=True)):
            for place in own:
                settings = experiment if place == run_folder else _alone(experiment, targets[None][index])
                _write_once(place / "config.yaml", experiment_to_yaml(settings))
                _write_once(place / "manifest.json", json.dumps(provenance, indent=1) + "\n")
        async with AsyncExitStack() as stack:
            evaluations = {
                name: Evaluations(await stack.enter_async_context(_executor(bench)), journal, name)
                for name, bench in benches.items()
            }
            spent = Spent()
            fronts = _fronts(experiment, benches, targets, evaluations, spent, provenances)
            subjects = [Subject(name, bench, evaluations[name]) for name, bench in benches.items()]
            session = Session(
                experiment, subjects, fronts, folders=folders, journal=journal, listener=tell, spent=spent
            )
            return await session.run()


async def _open_targets(
    experiment: Experiment,
    architecture: str | None,
    bench: Workbench,
    devices: Mapping[str, Device],
    spaces: Sequence[SearchSpace],
    folders: Sequence[Sequence[Path]],
    notify: Callable[[str, str], None],
) -> list[Target]:
    """The devices as they execute one architecture."""
    return [
        await asyncio.to_thread(
            open_target,
            experiment,
            name,
            device,
            space,
            classes=bench.classes,
            kept=own[0] / latency_table(architecture),
            notify=lambda told: notify("latency", told),
        )
        for (name, device), space, own in zip(devices.items(), spaces, folders, strict=True)
    ]


def _fronts(
    experiment: Experiment,
    benches: Mapping[str | None, Workbench],
    targets: Mapping[str | None, Sequence[Target]],
    evaluations: Mapping[str | None, Evaluations],
    spent: Spent,
    provenances: Sequence[Mapping[str, Any]],
) -> list[FrontSearch]:
    """One front for each device, or one for all architectures."""
    if None in benches:
        bench = benches[None]
        return [
            FrontSearch(
                share,
                [TargetSearch(share, target, evaluations[None], batches=_batches(bench), classes=bench.classes)],
                spent=spent,
                provenance=provenance,
            )
            for share, target, provenance in zip(
                shares(experiment, len(provenances)), targets[None], provenances, strict=True
            )
        ]
    standing = standings({str(name): bench.evaluator.images("selection") for name, bench in benches.items()})
    archive = ParetoArchive()
    contenders = [
        Contender(
            str(name),
            bench.experiment,
            targets[name][0],
            evaluations[name],
            batches=_batches(bench),
            classes=bench.classes,
            standing=standing[str(name)],
            archive=archive,
            first=first_evaluations(experiment),
        )
        for name, bench in benches.items()
    ]
    return [FrontSearch(experiment, contenders, spent=spent, provenance=provenances[0])]


def _batches(bench: Workbench) -> list[int]:
    return [len(batch) for batch in bench.evaluator.images("selection").batches]


def _alone(experiment: Experiment, target: Target) -> Experiment:
    """The experiment for one of its devices, as commands need it that look at a single front."""
    spec, table = experiment.target, experiment.target.table_of(target.name)
    changes = {"device": (target.name,), "latency": target.latency.name, "latency_table": table}
    return experiment.model_copy(update={"target": spec.model_copy(update=changes)})


def _ignore(_event: events.Event) -> None:
    """Nobody listens."""


def _check_executor(name: str, *, is_named: bool) -> None:
    """Refuse at once what would fail after minutes of preparation."""
    if name != "thread" and not is_named:
        raise ConfigurationError(
            "Workers load model and images by name, but these were given as objects. Use evaluation.executor: thread."
        )
    if name == "ray":
        import_ray()


@asynccontextmanager
async def _executor(bench: Workbench) -> AsyncIterator[Executor]:
    spec, task = bench.experiment.evaluation, (bench.experiment, bench.identity)
    async with ray_cluster(spec) if spec.executor == "ray" else nullcontext():
        executor: Executor
        if spec.executor == "thread":
            executor = ThreadExecutor(bench, spec.parallel_evaluations)
        else:
            kind = RayWorker if spec.executor == "ray" else ProcessWorker
            executor = WorkerExecutor([kind(*task) for _ in range(spec.parallel_evaluations)])
        with closing(executor):
            yield executor


@contextmanager
def _journal(run_folder: Path, identity: Mapping[str, str]) -> Iterator[Journal]:
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot make the run folder {run_folder}: {error}. Choose another with --run-dir.") from error
    with Journal(run_folder / "journal.sqlite") as journal:
        journal.claim(identity)
        yield journal


def _identity(
    experiment: Experiment,
    benches: Mapping[str | None, Workbench],
    spaces: Mapping[str | None, Sequence[SearchSpace]],
    devices: Sequence[Device],
) -> dict[str, str]:
    found = {"experiment": experiment_hash(experiment)}
    for name, bench in benches.items():
        whose = "" if name is None else f" {name}"
        found |= {f"{key}{whose}": value for key, value in bench.identity.items() if key != "experiment"}
        for index, (space, device) in enumerate(zip(spaces[name], devices, strict=True)):
            axes = [(group.name, repr(table.axes)) for group, table in zip(space.groups, space.tables, strict=True)]
            suffix = f" {device.name}" if index else ""
            found[f"space{whose}{suffix}"] = hashlib.sha256(json.dumps(axes).encode()).hexdigest()
            found[f"device{suffix}"] = hashlib.sha256(device.model_dump_json().encode()).hexdigest()
    return found


def _provenance(
    experiment: Experiment, benches: Mapping[str | None, Workbench], targets: Mapping[str | None, Target]
) -> dict[str, Any]:
    target = next(iter(targets.values()))
    models = {name: _model_provenance(bench) for name, bench in benches.items()}
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "command": " ".join(sys.argv),
        "seed": experiment.search.seed,
        "device": target.device.name,
        "quantized": "both operands of every convolution, linear layer and attention matmul; all else stays float",
        "latency_kind": target.latency.kind,
        "latency": target.latency.told,
        **models.get(None, {"architectures": models}),
    }


def _model_provenance(bench: Workbench) -> dict[str, Any]:
    norms = bench.captured.batch_norms
    return {
        "hashes": dict(bench.identity),
        "batch_norms": {"folded": norms.folded, "remaining": list(norms.remaining)},
        "preparation": json.loads(json.dumps(bench.preparation.to_dict())),
    }


def _write_once(path: Path, text: str) -> None:
    """Write a file of the run unless an earlier session has."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error}.") from error
