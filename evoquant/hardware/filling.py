"""Filling a latency table: measure what is missing, interpolate what is too much, keep it for the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from evoquant.errors import HardwareError
from evoquant.hardware.table import Case, Entry, Key, LatencyTable, key_of, read_table
from evoquant.resources import cache_folder

CaseT = TypeVar("CaseT", bound=Case)


class Timed(Protocol):
    """The timing of one case."""

    @property
    def case(self) -> Case:
        """What was timed."""
        ...

    @property
    def median_ms(self) -> float:
        """Median of the samples."""
        ...

    @property
    def iqr_ms(self) -> float:
        """Their interquartile range."""
        ...


def table_path(machine: Mapping[str, Any], threads: int, folder: Path | None = None) -> Path:
    """Where the table of a machine is kept: its name carries a hash of the fingerprint.

    Args:
        machine: Fingerprint.
        threads: Threads of the kernels.
        folder: None for the cache folder of the platform.
    """
    text = json.dumps(dict(machine), sort_keys=True, default=str)
    name = f"latency-{hashlib.sha256(text.encode()).hexdigest()[:12]}-t{threads}.json"
    return (folder or cache_folder("latency")) / name


def load_or_start(path: Path, machine: Mapping[str, Any], threads: int) -> LatencyTable:
    """The table of a file, if it is of this machine; an empty one if there is no file.

    Raises:
        HardwareError: If the file is of another machine or another number of threads, naming the differences, or
            cannot be read.
    """
    if not path.exists():
        return LatencyTable(json.loads(json.dumps(dict(machine))), threads, {})
    table = read_table(path)
    table.check_machine(machine, threads=threads, place=str(path))
    return table


def fill(
    table: LatencyTable,
    cases: Iterable[CaseT],
    measure: Callable[[Sequence[CaseT]], Iterable[Timed]],
    *,
    most_measured: int | None = None,
) -> LatencyTable:
    """The table with an entry for each case.

    Cases that have an entry, also an interpolated one, are not measured again.

    Args:
        table: What is known.
        cases: What is wanted.
        measure: Times cases, alone on the machine.
        most_measured: Above this number of missing cases a sample is measured and the rest interpolated: each shape at
            its first precision, then every precision on shapes spread over the list. None measures all.

    Raises:
        HardwareError: If ``measure`` leaves out a case that it was given.
    """
    missing = list({key_of(case): case for case in cases if case not in table}.values())
    sample = missing if most_measured is None or len(missing) <= most_measured else _sample(missing, most_measured)
    timed = {key_of(timing.case): Entry(timing.median_ms, timing.iqr_ms) for timing in measure(sample)}
    left_out = [str(key_of(case)) for case in sample if key_of(case) not in timed]
    if left_out:
        raise HardwareError(f"No time was measured for {left_out[0]} (and {len(left_out) - 1} more).")
    table = table.with_entries(timed)
    rest = [key_of(case) for case in missing if key_of(case) not in timed]
    return table.with_entries(interpolate(table, rest)) if rest else table


def interpolate(table: LatencyTable, wanted: Sequence[Key]) -> dict[Key, Entry]:
    """Estimate times from measured ones: ``log t = shape + precision``, one such model for each kernel.

    The sum is fitted by least squares to the measured entries; a wanted entry needs its shape and its precision among
    them. The spread of an estimate is its time times the root mean square of the residuals.

    Raises:
        HardwareError: If a shape or a precision was never measured with this kernel.
    """
    found: dict[Key, Entry] = {}
    for op in dict.fromkeys(key.op for key in wanted):
        known = [(key, entry) for key, entry in table.entries.items() if key.op == op and entry.kind == "measured"]
        shapes = {shape: index for index, shape in enumerate(dict.fromkeys(key.shape for key, _ in known))}
        precisions = {name: index for index, name in enumerate(dict.fromkeys(key.precision for key, _ in known))}
        for key in wanted:
            if key.op == op and (key.shape not in shapes or key.precision not in precisions):
                raise HardwareError(f"{key} cannot be interpolated: its shape or its precision was never measured.")
        design = np.zeros((len(known), len(shapes) + len(precisions)))
        for row, (key, _) in enumerate(known):
            design[row, shapes[key.shape]] = design[row, len(shapes) + precisions[key.precision]] = 1.0
        times = np.log([max(entry.median_ms, 1e-9) for _, entry in known])
        solution, *_ = np.linalg.lstsq(design, times, rcond=None)
        residual = float(np.sqrt(np.mean((design @ solution - times) ** 2)))
        for key in (key for key in wanted if key.op == op):
            at = float(np.exp(solution[shapes[key.shape]] + solution[len(shapes) + precisions[key.precision]]))
            found[key] = Entry(at, at * residual, "interpolated")
    return found


def _sample(cases: Sequence[CaseT], most: int) -> list[CaseT]:
    """At most about ``most`` cases that contain each shape and each precision of each kernel."""
    chosen: dict[Key, CaseT] = {}
    seen: set[tuple[str, object]] = set()
    for case in cases:
        key = key_of(case)
        if (key.op, key.shape) not in seen or (key.op, key.precision) not in seen:
            seen |= {(key.op, key.shape), (key.op, key.precision)}
            chosen[key] = case
    rest = [case for case in cases if key_of(case) not in chosen]
    room = max(most - len(chosen), 0)
    if room and rest:
        for index in np.linspace(0, len(rest) - 1, num=min(room, len(rest))).round().astype(int):
            chosen[key_of(rest[index])] = rest[index]
    return list(chosen.values())
