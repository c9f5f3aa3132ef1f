"""Latency tables: times of single kernels on one machine, in a published JSON format.

    {"schema_version": 1,
     "machine": {"cpu": "...", "flags": [...], ...},
     "threads": 1,
     "entries": [{"op": "gemm", "shape": [1, 196, 64, 192], "precision": "w8a8", "threads": 1,
                  "median_ms": 0.031, "iqr_ms": 0.001, "kind": "measured"}]}

``machine`` is the fingerprint of the machine that the times were taken on. A user's own table may also be CSV with the
columns ``op, shape, precision, median_ms`` and, if known, ``threads, iqr_ms, kind``; shapes as in ``1x196x64x192``.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from evoquant.errors import HardwareError, did_you_mean

SCHEMA_VERSION = 1
EntryKind = Literal["measured", "interpolated"]


class Case(Protocol):
    """What was timed: a kernel, the shape of its work, and the precision of its operands."""

    @property
    def op(self) -> str:
        """Name of the kernel."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def precision(self) -> str:
        """Precision of its operands."""
        ...


class Key(NamedTuple):
    """What names an entry."""

    op: str
    shape: tuple[int, ...]
    precision: str

    def __str__(self) -> str:
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.precision}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Time of one kernel.

    Attributes:
        median_ms: Median time of one call.
        iqr_ms: Interquartile range.
        kind: ``interpolated`` if it was not timed itself.
    """

    median_ms: float
    iqr_ms: float
    kind: EntryKind = "measured"


@dataclass(frozen=True)
class LatencyTable:
    """Times of kernels on one machine.

    Attributes:
        machine: Fingerprint of the machine: plain JSON values.
        threads: Threads of every kernel.
        entries: Times by kernel, shape and precision.
    """

    machine: Mapping[str, Any]
    threads: int
    entries: Mapping[Key, Entry]

    def __getitem__(self, case: Case) -> Entry:
        """The time of a case.

        Raises:
            HardwareError: If the table has no such entry.
        """
        entry = self.entries.get(key_of(case))
        if entry is None:
            raise HardwareError(f"The latency table has no entry for {key_of(case)} ({self._nearest(key_of(case))}).")
        return entry

    def __contains__(self, case: Case) -> bool:
        return key_of(case) in self.entries

    def with_entries(self, entries: Mapping[Key, Entry]) -> LatencyTable:
        """This table with more entries; new ones replace old ones of the same name."""
        return replace(self, entries={**self.entries, **entries})

    def only(self, cases: Iterable[Case]) -> LatencyTable:
        """This table without the entries of other cases."""
        return replace(self, entries={key_of(case): self[case] for case in cases})

    def check_machine(self, fingerprint: Mapping[str, Any], *, threads: int, place: str) -> None:
        """Refuse a table of another machine.

        Args:
            fingerprint: Of this machine.
            threads: Threads that are wanted.
            place: Where the table comes from, for the message.

        Raises:
            HardwareError: Naming each difference.
        """
        here = {**json.loads(json.dumps(dict(fingerprint))), "threads": threads}
        there = {**self.machine, "threads": self.threads}
        names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if names:
            told = "; ".join(
                f"{name}: {_shown(there.get(name))} there, {_shown(here.get(name))} here" for name in names
            )
            raise HardwareError(
                f"{place}: This latency table was taken elsewhere ({told}). Measure again on this machine, or use it "
                "as a user's table ('table') for the device that it describes."
            )

    def to_dict(self) -> dict[str, Any]:
        """The published format, entries in a fixed order."""
        rows = [
            {
                "op": key.op,
                "shape": list(key.shape),
                "precision": key.precision,
                "threads": self.threads,
                "median_ms": entry.median_ms,
                "iqr_ms": entry.iqr_ms,
                "kind": entry.kind,
            }
            for key, entry in sorted(self.entries.items())
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": dict(self.machine),
            "threads": self.threads,
            "entries": rows,
        }

    def save(self, path: Path) -> None:
        """Write the table; a reader finds the old file or the new one, never a part.

        Raises:
            HardwareError: If the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
                json.dump(self.to_dict(), file, indent=1)
                file.write("\n")
            Path(file.name).replace(path)
        except OSError as error:
            raise HardwareError(f"{path}: The latency table cannot be written: {error}") from error

    def _nearest(self, key: Key) -> str:
        alike = [other for other in self.entries if other.op == key.op and other.precision == key.precision]
        if alike:
            return f"it has {len(alike)} other shapes of {key.op} {key.precision}"
        return f"nothing like it{did_you_mean(key.op, {other.op for other in self.entries})}"


def key_of(case: Case) -> Key:
    """The name of the entry of a case."""
    return Key(case.op, tuple(case.shape), case.precision)


def read_table(path: Path) -> LatencyTable:
    """Read a table in the published format, or a user's CSV (then ``machine`` holds the name of the file only).

    Raises:
        HardwareError: If the file is missing, is of another format, or has rows that cannot be read; names the first
            row of each kind of fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HardwareError(f"{path}: The latency table cannot be read: {error}") from error
    return _read_csv(path, text) if path.suffix == ".csv" else _read_json(path, text)


def _read_json(path: Path, text: str) -> LatencyTable:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise HardwareError(f"{path}:{error.lineno}: Not valid JSON: {error.msg}.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise HardwareError(
            f"{path}: Expected a latency table of schema_version {SCHEMA_VERSION}, but got {version!r}."
        )
    missing = {"machine", "threads", "entries"} - set(data)
    if missing:
        raise HardwareError(f"{path}: The latency table lacks {', '.join(sorted(missing))}.")
    threads = data["threads"]
    rows = ((f"entry {index}", row) for index, row in enumerate(data["entries"]))
    return LatencyTable(data["machine"], threads, _entries(path, rows, threads))


def _read_csv(path: Path, text: str) -> LatencyTable:
    reader = csv.DictReader(text.splitlines())
    missing = {"op", "shape", "precision", "median_ms"} - set(reader.fieldnames or ())
    if missing:
        raise HardwareError(f"{path}:1: The columns {', '.join(sorted(missing))} are missing.")
    rows = [dict(row) for row in reader]
    threads = int(rows[0].get("threads") or 1) if rows else 1
    named = ((f"line {index}", {**row, "shape": row["shape"].split("x")}) for index, row in enumerate(rows, 2))
    return LatencyTable({"table": path.name}, threads, _entries(path, named, threads))


def _entries(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], threads: int) -> dict[Key, Entry]:
    entries: dict[Key, Entry] = {}
    for place, row in rows:
        try:
            key = Key(str(row["op"]), tuple(int(size) for size in row["shape"]), str(row["precision"]))
            entry = Entry(float(row["median_ms"]), float(row.get("iqr_ms") or 0.0), _kind(row.get("kind")))
            if int(row.get("threads") or threads) != threads:
                raise ValueError(f"threads {row['threads']} in a table of {threads}")
            if not (0 <= entry.median_ms < float("inf") and 0 <= entry.iqr_ms < float("inf")):
                raise ValueError(f"a time of {entry.median_ms} ms ± {entry.iqr_ms}")
        except (KeyError, TypeError, ValueError) as error:
            raise HardwareError(f"{path}: {place} of the latency table cannot be read: {error!r}") from error
        if key in entries:
            raise HardwareError(f"{path}: {place} of the latency table repeats {key}.")
        entries[key] = entry
    return entries


def _kind(text: str | None) -> EntryKind:
    if not text or text == "measured":
        return "measured"
    if text == "interpolated":
        return "interpolated"
    raise ValueError(f"kind {text!r}, not one of {', '.join(get_args(EntryKind))}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
