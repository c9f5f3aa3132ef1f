"""The journal of a run: every finished evaluation, on disk before the search hears of it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from evoquant.errors import RunError

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    split TEXT NOT NULL,
    phenotype TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'stopped', 'failed')),
    plan TEXT NOT NULL,
    result TEXT,
    scores BLOB NOT NULL,
    reason TEXT,
    seconds REAL NOT NULL,
    finished REAL NOT NULL,
    PRIMARY KEY (split, phenotype)
);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One finished evaluation.

    Attributes:
        phenotype: Hash of the evaluated plan; of several architectures with the name of its own in front of it.
        split: The image set, ``selection`` or ``test``.
        status: ``done``, ``stopped`` after some of the images, or ``failed`` with a reason.
        plan: Precision of every operation, as plain values.
        result: The accuracy on the images that it got, as plain values; None if it failed.
        scores: The ``IMAGE_SCORE`` of each of these images, as bytes; of a failed plan those before the failure.
        reason: Why it failed, else None.
        seconds: Time it took.
    """

    phenotype: str
    split: str
    status: Literal["done", "stopped", "failed"]
    plan: dict[str, Any]
    result: dict[str, Any] | None
    scores: bytes
    reason: str | None
    seconds: float


class Journal:
    """Evaluations of one run in an SQLite file. One process writes it; each record is durable when ``add`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._failures_named("open"):
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def claim(self, identity: Mapping[str, str]) -> bool:
        """Make this the journal of the run with the given identity; return whether it is being resumed.

        Raises:
            RunError: If it already belongs to another run; the message names what differs.
        """
        known = self._facts()
        expected = {"schema_version": str(SCHEMA_VERSION), **identity}
        if not known:
            with self._failures_named("write"):
                self._connection.execute("BEGIN")
                self._connection.executemany("INSERT INTO facts VALUES (?, ?)", expected.items())
                self._connection.execute("COMMIT")
            return False
        differences = [
            f"  {name}: the folder has {known.get(name, 'nothing')}, this run has {expected.get(name, 'nothing')}"
            for name in sorted(known.keys() | expected.keys())
            if known.get(name) != expected.get(name)
        ]
        if differences:
            raise RunError(
                f"{self.path.parent} holds another run:\n"
                + "\n".join(differences)
                + "\nUse another --run-dir, or remove "
                "that folder."
            )
        return True

    def add(self, record: Record) -> None:
        """Write one evaluation.

        Raises:
            RunError: If it cannot be written, for example on a full disk.
        """
        row = (
            record.split,
            record.phenotype,
            record.status,
            json.dumps(record.plan),
            None if record.result is None else json.dumps(record.result),
            record.scores,
            record.reason,
            record.seconds,
            time.time(),
        )
        with self._failures_named("write"):
            self._connection.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def get(self, phenotype: str, *, split: str) -> Record | None:
        """The evaluation of a plan, if it is there."""
        with self._failures_named("read"):
            row = self._connection.execute(
                "SELECT phenotype, split, status, plan, result, scores, reason, seconds FROM evaluations "
                "WHERE split = ? AND phenotype = ?",
                (split, phenotype),
            ).fetchone()
        return None if row is None else _record(row)

    def keep(self, name: str, value: dict[str, Any]) -> None:
        """Keep something that was computed once for the whole run, as plain JSON values.

        Raises:
            RunError: If it cannot be written.
        """
        with self._failures_named("write"):
            self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def kept(self, name: str) -> dict[str, Any] | None:
        """What was kept under this name, if anything."""
        with self._failures_named("read"):
            row = self._connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def __iter__(self) -> Iterator[Record]:
        """All evaluations in the order in which they finished."""
        with self._failures_named("read"):
            rows = self._connection.execute(
                "SELECT phenotype, split, status, plan, result, scores, reason, seconds FROM evaluations ORDER BY rowid"
            ).fetchall()
        return map(_record, rows)

    def seconds(self) -> float:
        """Time spent on all evaluations together."""
        with self._failures_named("read"):
            (total,) = self._connection.execute("SELECT COALESCE(SUM(seconds), 0) FROM evaluations").fetchone()
        return float(total)

    def _facts(self) -> dict[str, str]:
        with self._failures_named("read"):
            return dict(self._connection.execute("SELECT name, value FROM facts").fetchall())

    @contextmanager
    def _failures_named(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"Cannot {action} the journal {self.path}: {error}. Every evaluation before this one is kept; "
                "free some space or mend the folder, and run the same command again."
            ) from error


def _record(row: tuple[Any, ...]) -> Record:
    phenotype, split, status, plan, result, scores, reason, seconds = row
    accuracy = None if result is None else json.loads(result)
    return Record(phenotype, split, status, json.loads(plan), accuracy, scores, reason, seconds)
