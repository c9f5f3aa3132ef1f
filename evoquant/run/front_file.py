"""The files of a front: JSON, YAML and CSV, and one YAML plan for each point."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from evoquant.config import dump_yaml
from evoquant.errors import ConfigurationError, EvoQuantError, RunError
from evoquant.types import LayerQuantConfig
from evoquant.types.front import FRONT_SCHEMA_VERSION, FrontDocument

PLANS = "plans"

TARGETS = "targets"
"""Folder of a run that holds one folder for each device, where there are several."""


def write_front(folder: Path, document: FrontDocument, *, draft: bool = False) -> None:
    """Write ``pareto.json``, ``pareto.csv``, ``pareto.yaml`` and ``plans/ID.yaml``; each file is replaced as a whole.

    Args:
        folder: The run folder.
        document: The front.
        draft: Write the first two only: what a generation in between leaves.

    Raises:
        RunError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "pareto.json", json.dumps(document.to_dict(), indent=1, allow_nan=False) + "\n")
        _replace(folder / "pareto.csv", _table(document))
        if not draft:
            _write_yaml(folder, document)
    except OSError as error:
        raise RunError(f"Cannot write the front to {folder}: {error}. The journal has every evaluation.") from error


def _write_yaml(folder: Path, document: FrontDocument) -> None:
    data = document.to_dict()
    del data["evaluated"]
    for kind in ("front", "baselines"):
        data[kind] = [{**point, "plan": _brief(point["plan"])} for point in data[kind]]
    _replace(folder / "pareto.yaml", dump_yaml(data))
    plans = folder / PLANS
    plans.mkdir(exist_ok=True)
    points = (*data["front"], *data["baselines"])
    for point in points:
        _replace(plans / f"{point['id']}.yaml", dump_yaml({"schema_version": FRONT_SCHEMA_VERSION, **point}))
    kept = {f"{point['id']}.yaml" for point in points}
    for stale in plans.glob("*.yaml"):
        if stale.name not in kept:
            stale.unlink()


def _brief(plan: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A plan without the fields that have their defaults; it reads back as the same plan."""
    default = LayerQuantConfig().to_dict()
    always = ("weight_bits", "activation_bits")
    return {
        op: {name: value for name, value in config.items() if name in always or value != default[name]}
        for op, config in plan.items()
    }


def read_front(path: Path) -> FrontDocument:
    """Read the front of a run folder, or a ``pareto.json``.

    Raises:
        ConfigurationError: If there is none, or it is not one.
    """
    file = path / "pareto.json" if path.is_dir() else path
    try:
        return FrontDocument.from_dict(json.loads(file.read_text()))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{file}: no such file. Give a folder that 'evoquant search' has written.") from error
    except EvoQuantError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file}: is not a front that evoquant can read: {error!r}") from error


def read_fronts(run_folder: Path) -> dict[Path, FrontDocument]:
    """The fronts of all devices of a run by their folders, the run folder itself first.

    Raises:
        ConfigurationError: If there is none, or one cannot be read.
    """
    fronts = {run_folder: read_front(run_folder)}
    for folder in sorted((run_folder / TARGETS).glob("*")):
        if folder.is_dir():
            fronts[folder] = read_front(folder)
    return fronts


def _table(document: FrontDocument) -> str:
    names = list(dict.fromkeys(name for point in (*document.front, *document.baselines) for name in point.objectives))
    is_shared = bool(document.architectures)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "id",
            "name",
            *(["architecture"] if is_shared else []),
            "kind",
            *names,
            "test_top1",
            "test_ci95_low",
            "test_ci95_high",
            "test_images",
        ]
    )
    for kind, points in (("front", document.front), ("baseline", document.baselines)):
        for point in points:
            test = point.test
            tested = ("", "", "", "") if test is None else (test.top1, *test.ci95, test.images)
            whose = [point.architecture] if is_shared else []
            writer.writerow(
                [point.id, point.name, *whose, kind, *(point.objectives.get(name, "") for name in names), *tested]
            )
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place: a reader sees the old text or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
