"""The devices of a run: what each executes, and what plans cost there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evoquant.config import Experiment
from evoquant.errors import ConfigurationError, HardwareError
from evoquant.evaluate import Plan
from evoquant.hardware import CostModel, Device, legalise, load_device
from evoquant.run.front_file import TARGETS
from evoquant.run.latency import LatencySource, latency_source, open_latency_model
from evoquant.space import SearchSpace, presets
from evoquant.types import LayerQuantConfig, ModelGraph


def latency_table(architecture: str | None) -> str:
    """Name of the run's own copy of what was measured for one of its architectures; None: it has one alone."""
    return "latency_table.json" if architecture is None else f"latency_table.{architecture}.json"


@dataclass(frozen=True)
class Target:
    """One device of a run.

    Attributes:
        name: What the experiment calls it.
        device: Its description.
        space: What is searched there.
        costs: What a plan costs there.
        latency: Where its latencies come from.
        presets: Plans that are known before any search, in the form that the device executes.
        refused: Presets that it cannot execute, and why.
    """

    name: str
    device: Device
    space: SearchSpace
    costs: CostModel
    latency: LatencySource
    presets: Mapping[str, Plan]
    refused: Mapping[str, str]


def load_devices(experiment: Experiment) -> dict[str, Device]:
    """The devices of an experiment by what it calls them.

    Raises:
        ConfigurationError: If two names mean the same device, or a file breaks the schema.
        UnknownNameError: If there is no such device.
    """
    found: dict[str, Device] = {}
    for name in experiment.target.device:
        device = load_device(name)
        same = next((other for other, known in found.items() if known.name == device.name), None)
        if same is not None:
            raise ConfigurationError(f"target.device: '{same}' and '{name}' are the same device, {device.name}.")
        found[name] = device
    return found


def open_target(
    experiment: Experiment,
    name: str,
    device: Device,
    space: SearchSpace,
    *,
    classes: Mapping[str, str] | None = None,
    kept: Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Target:
    """Make the costs of a device ready; what has to be measured for them is measured now.

    Args:
        experiment: The run.
        name: What it calls the device.
        device: The device.
        space: What is searched there.
        classes: For the published hybrid rule.
        kept: Where a measured table is kept.
        notify: Told where the latencies come from, before anything is measured.

    Raises:
        HardwareError: If latencies cannot be had.
    """
    legal, refused = legal_presets(space.graph, device, classes)
    source = latency_source(experiment.target, name, device)
    if notify is not None:
        notify(f"{device.name}: {source.told}")
    model = open_latency_model(experiment.target, device, space.graph, reachable(space, legal), name=name, kept=kept)
    return Target(name, device, space, CostModel(space.graph, device, model), source, legal, refused)


def legal_presets(
    graph: ModelGraph, device: Device, classes: Mapping[str, str] | None = None
) -> tuple[dict[str, Plan], dict[str, str]]:
    """The presets as the device executes them, and the reasons of those that it does not."""
    found: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    for name, plan in presets(graph, classes).items():
        try:
            found[name] = {op.name: legalise(op, plan[op.name], device).config for op in graph.ops}
        except HardwareError as error:
            refused[name] = str(error)
    return found, refused


def reachable(space: SearchSpace, legal: Mapping[str, Plan]) -> dict[str, set[LayerQuantConfig]]:
    """For each operation, the precisions that the space and the presets give it."""
    found = {name: set(configs) for name, configs in space.reachable().items()}
    for plan in legal.values():
        for name, config in plan.items():
            found[name].add(config)
    return found


def target_folders(run_folder: Path, devices: Mapping[str, Device]) -> list[tuple[Path, ...]]:
    """Where each device's result goes: the run folder alone, or a folder for each and the first also there."""
    if len(devices) == 1:
        return [(run_folder,)]
    own = [run_folder / TARGETS / device.name for device in devices.values()]
    return [(own[0], run_folder), *((folder,) for folder in own[1:])]
