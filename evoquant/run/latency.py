"""Opening the latency model of a device; what is measured for it is kept with the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evoquant import kernels
from evoquant.config import TargetSpec
from evoquant.hardware import Device, LatencyModel, Roofline, machine_table
from evoquant.hardware.filling import load_or_start
from evoquant.hardware.measured import MeasuredLatency, reachable_cases
from evoquant.hardware.table import LatencyTable, read_table
from evoquant.types import LayerQuantConfig, ModelGraph

Choices = Mapping[str, Iterable[LayerQuantConfig]]
"""For each operation, the precisions that it may have."""


@dataclass(frozen=True, slots=True)
class LatencySource:
    """Where the latencies of one device come from.

    Attributes:
        name: ``measured`` here, the ``roofline`` of the device file, or a ``table`` of the user.
        told: The same in a sentence.
        table: The table, if there is one.
    """

    name: Literal["measured", "roofline", "table"]
    told: str
    table: Path | None = None

    @property
    def kind(self) -> Literal["measured", "predicted"]:
        """Whether latencies are sums of times that were taken on the device."""
        return "predicted" if self.name == "roofline" else "measured"


def latency_source(target: TargetSpec, name: str, device: Device) -> LatencySource:
    """What an experiment asks for, as far as it is possible: only this machine can be measured here.

    Args:
        target: The devices of the experiment.
        name: One of them, as the experiment calls it.
        device: The same.
    """
    table = target.table_of(name)
    if table is not None:
        return LatencySource("table", f"sums of the latency table {table}", table)
    if target.latency != "roofline" and device.is_this_machine:
        isa = device.isa or kernels.info().used
        return LatencySource("measured", f"sums of kernels timed alone on this machine ({isa})")
    why = "" if target.latency == "roofline" else ", which is not this machine and has no latency table"
    return LatencySource("roofline", f"the roofline of {device.title}{why}")


def open_latency_model(
    target: TargetSpec,
    device: Device,
    graph: ModelGraph,
    choices: Choices,
    *,
    name: str | None = None,
    kept: Path | None = None,
) -> LatencyModel:
    """The latency model that an experiment asks for.

    Args:
        target: Where latencies come from.
        device: The device.
        graph: The model.
        choices: What has to be known.
        name: What the experiment calls the device; None: it is the first one.
        kept: The run's own copy of a measured table. If it is there, nothing is measured again, so that a resumed run
            sees the times that it began with.

    Raises:
        HardwareError: If an operation has no kernel, or the table is of another machine.
        KernelError: If the native kernels are not built.
    """
    source = latency_source(target, name or target.device[0], device)
    if source.name == "roofline":
        return Roofline(device, threads=target.threads if device.is_this_machine else None)
    if source.table is not None:
        return MeasuredLatency(read_table(source.table), device, kernels)
    return MeasuredLatency(measured_table(target.threads, device, graph, choices, kept=kept), device, kernels)


def measured_table(
    threads: int, device: Device, graph: ModelGraph, choices: Choices, *, kept: Path | None = None
) -> LatencyTable:
    """This machine's table with an entry for everything that is reachable; what is missing is measured now.

    Raises:
        HardwareError: If an operation has no kernel.
        KernelError: If the native kernels are not built, or not for the instruction set of the device.
    """
    if kept is not None and kept.exists():
        return load_or_start(kept, kernels.fingerprint(threads=threads, isa=device.isa), threads)
    cases = reachable_cases(graph, choices, device, kernels)
    table = machine_table(cases, threads=threads, isa=device.isa).only(cases)
    if kept is not None:
        table.save(kept)
    return table
