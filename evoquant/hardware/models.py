"""The latency models by name, and the table of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evoquant import kernels
from evoquant.errors import ConfigurationError, UnknownNameError
from evoquant.hardware.device import Device
from evoquant.hardware.filling import Timed, fill, load_or_start, table_path
from evoquant.hardware.latency import LatencyModel
from evoquant.hardware.measured import MeasuredLatency
from evoquant.hardware.roofline import Roofline
from evoquant.hardware.table import Case, LatencyTable, read_table

LATENCY_MODELS = ("measured", "roofline", "table")
"""``measured``: a table of this machine; ``roofline``: the device file; ``table``: a user's table of their device."""


def machine_table(
    cases: Iterable[Case],
    *,
    threads: int = 1,
    folder: Path | None = None,
    most_measured: int | None = None,
    measure: Callable[[Sequence[Any]], Iterable[Timed]] | None = None,
) -> LatencyTable:
    """The latency table of this machine with an entry for each case: what is known is reused, the rest measured.

    Nothing else should run meanwhile. The table is saved before it is returned.

    Args:
        cases: What is wanted.
        threads: Threads of every kernel.
        folder: Where tables are kept; None for the cache folder.
        most_measured: See ``fill``.
        measure: Times cases; None for the native kernels.

    Raises:
        KernelError: If the native kernels are missing.
        HardwareError: If the kept table cannot be read or written.
    """
    machine = kernels.fingerprint(threads=threads)
    path = table_path(machine, threads, folder)
    known = load_or_start(path, machine, threads)
    table = fill(
        known,
        cases,
        measure or (lambda missing: kernels.measure(missing, threads=threads)),
        most_measured=most_measured,
    )
    if table is not known and table != known:
        table.save(path)
    return table


def latency_model(
    name: str,
    device: Device,
    *,
    threads: int = 1,
    table: LatencyTable | Path | None = None,
    cases: Iterable[Case] = (),
    folder: Path | None = None,
    most_measured: int | None = None,
) -> LatencyModel:
    """A latency model by its name.

    Args:
        name: One of ``LATENCY_MODELS``.
        device: The device.
        threads: Threads of every kernel; ``roofline`` scales the peak rates by it on the host, where they are those of
            one core, and takes all of any other device.
        table: For ``table``: the user's table, or its file.
        cases: For ``measured``: what will be asked for, see ``reachable_cases``.
        folder: For ``measured``: where tables are kept.
        most_measured: For ``measured``: see ``fill``.

    Raises:
        UnknownNameError: If there is no such model; names the nearest.
        ConfigurationError: If ``table`` is asked for without a table.
    """
    if name == "roofline":
        return Roofline(device, threads=threads if device.name == "host_cpu" else None)
    if name == "measured":
        found = machine_table(cases, threads=threads, folder=folder, most_measured=most_measured)
        return MeasuredLatency(found, device, kernels)
    if name == "table":
        if table is None:
            raise ConfigurationError("The latency model 'table' needs the path of a latency table, but got none.")
        return MeasuredLatency(table if isinstance(table, LatencyTable) else read_table(table), device, kernels)
    raise UnknownNameError("latency model", name, LATENCY_MODELS)
