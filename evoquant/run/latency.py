"""Opening the latency model of a run; what is measured for it is kept with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evoquant import kernels
from evoquant.config import TargetSpec
from evoquant.errors import HardwareError
from evoquant.hardware import Device, LatencyModel, Roofline
from evoquant.hardware.filling import fill, load_or_start, table_path
from evoquant.hardware.measured import MeasuredLatency, reachable_cases
from evoquant.hardware.table import Case, LatencyTable, read_table
from evoquant.resources import cache_folder
from evoquant.types import LayerQuantConfig, ModelGraph
from evoquant.types.target import HardwareTarget

Choices = Mapping[str, Iterable[LayerQuantConfig]]
"""For each operation, the precisions that it may have."""


def open_latency_model(
    target: TargetSpec, device: Device, graph: ModelGraph, choices: Choices, *, kept: Path | None = None
) -> LatencyModel:
    """The latency model that an experiment asks for.

    Args:
        target: Where latencies come from.
        device: The device that is searched for.
        graph: The model.
        choices: What has to be known.
        kept: The run's own copy of a measured table. If it is there, nothing is measured again, so that a resumed run
            sees the times that it began with.

    Raises:
        HardwareError: If latencies cannot be measured for this device here, or the table is of another machine.
    """
    if target.latency == "roofline":
        return Roofline(device, threads=target.threads)
    if target.latency == "table":
        assert target.latency_table is not None, "checked by TargetSpec"
        return MeasuredLatency(read_table(target.latency_table), device, kernels)
    if device.target is not HardwareTarget.HOST_CPU:
        raise HardwareError(
            f"Latency of {device.name} cannot be measured on this machine, which is not one. Use target.latency: "
            "roofline for a prediction, or measure on the device ('evoquant profile --bundle') and use latency: table."
        )
    return MeasuredLatency(measured_table(target.threads, device, graph, choices, kept=kept), device, kernels)


def measured_table(
    threads: int, device: Device, graph: ModelGraph, choices: Choices, *, kept: Path | None = None
) -> LatencyTable:
    """This machine's table with an entry for everything that is reachable; what is missing is measured now.

    Raises:
        HardwareError: If an operation has no kernel.
        KernelError: If the native kernels are not built.
    """
    machine = kernels.fingerprint(threads=threads)
    if kept is not None and kept.exists():
        return load_or_start(kept, machine, threads)
    path = table_path(machine, threads, cache_folder("latency"))
    known = load_or_start(path, machine, threads)
    cases = reachable_cases(graph, choices, device, kernels)
    table = fill(known, cases, lambda missing: _measure(missing, threads))
    if len(table.entries) > len(known.entries):
        table.save(path)
    if kept is not None:
        table.only(cases).save(kept)
    return table


def _measure(cases: Sequence[Case], threads: int) -> list[kernels.Timing]:
    return kernels.measure([kernels.KernelCase(case.op, case.shape, case.precision) for case in cases], threads=threads)
