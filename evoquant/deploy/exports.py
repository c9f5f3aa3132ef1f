"""Points of a run as packed models in its folder, and their verification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evoquant.config import Experiment, load_experiment
from evoquant.deploy.folder import DESCRIPTION, file_bytes, load_packed, save_packed
from evoquant.deploy.packed_model import PackedModel, pack
from evoquant.deploy.verification import verify_packed
from evoquant.errors import ConfigurationError, ModelError, RunError
from evoquant.evaluate import Workbench, prepare
from evoquant.hardware import load_device
from evoquant.run.front_file import read_front
from evoquant.run.plans import complete
from evoquant.types.front import FrontDocument, ParetoPoint

EXPORTS = "exports"
VERIFICATION = "verification.json"


class Benches:
    """The models of a run with their images, each prepared when it is first asked for.

    Args:
        experiment: The experiment of the run.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._made: dict[str | None, Workbench] = {}

    def of(self, point: ParetoPoint) -> Workbench:
        """The one that a point is for.

        Raises:
            EvoQuantError: If the experiment does not have its architecture, or it cannot be prepared.
        """
        name = point.architecture
        if name not in self._made:
            self._made[name] = prepare(self.experiment.of_architecture(name))
        return self._made[name]


def open_run(run_dir: Path) -> tuple[Benches, FrontDocument]:
    """Models, images and front of a run.

    Raises:
        ConfigurationError: If the folder is no run.
    """
    front = read_front(run_dir)
    config = run_dir / "config.yaml"
    if not config.exists():
        raise ConfigurationError(f"{config}: no such file. Give a folder that 'evoquant search' has written.")
    return Benches(load_experiment(config)), front


def chosen_points(front: FrontDocument, wanted: Sequence[str]) -> list[ParetoPoint]:
    """Points by id; ``knee`` is the knee, ``all`` the whole front.

    Raises:
        ConfigurationError: If there is none of that id, or the front is empty.
    """
    names = [point.id for point in front.front] if "all" in wanted else list(wanted)
    if not names or (front.knee is None and "knee" in names):
        raise ConfigurationError("The run has found no point yet.")
    return list({point.id: point for point in (front.point(name) for name in names)}.values())


def export_point(bench: Workbench, point: ParetoPoint, run_dir: Path) -> tuple[PackedModel, Path]:
    """Pack a point and write it to ``RUN_DIR/exports/ID``."""
    plan = complete(dict(point.plan), bench.captured.graph, point.id)
    model = pack(bench.captured, bench.evaluator.operands, plan)
    return model, save_packed(model, run_dir / EXPORTS / point.id)


def export_run(run_dir: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Export points of a run.

    Returns:
        ``run_dir`` and ``exports``: for each point its id, folder, bytes and fallbacks.
    """
    benches, front = open_run(run_dir)
    entries = []
    for point in chosen_points(front, wanted):
        model, folder = export_point(benches.of(point), point, run_dir)
        entries.append(
            {
                "id": point.id,
                "name": point.name,
                "folder": str(folder),
                "files": file_bytes(folder),
                "stored_bytes": model.recipe.stored_bytes,
                "steps": len(model.recipe.steps),
                "fallbacks": dict(model.fallbacks),
            }
        )
    return {"run_dir": str(run_dir), "model": front.model, "exports": entries}


def verify_run(run_dir: Path, wanted: Sequence[str], *, rounds: int = 15) -> dict[str, Any]:
    """Verify exported points; one that is not exported yet is exported first.

    Each record is also written to ``RUN_DIR/exports/ID/verification.json``.

    Returns:
        ``run_dir``, ``points`` (see ``verify_packed``, with ``id``, ``name`` and ``folder``) and ``passed``.

    Raises:
        ModelError: If an export is damaged, or is not of this run.
        RunError: If a record cannot be written.
    """
    benches, front = open_run(run_dir)
    device = load_device(benches.experiment.target.device[0])
    records = []
    for point in chosen_points(front, wanted):
        bench = benches.of(point)
        folder = run_dir / EXPORTS / point.id
        if not (folder / DESCRIPTION).exists():
            export_point(bench, point, run_dir)
        model = load_packed(folder, isa=device.isa)
        if dict(model.plan) != complete(dict(point.plan), bench.captured.graph, point.id):
            raise ModelError(f"{folder}: the exported plan is not that of point {point.id}. Export it again.")
        record = {
            "id": point.id,
            "name": point.name,
            "folder": str(folder),
            **verify_packed(model, bench, predicted=point.objectives, folder=folder, rounds=rounds),
        }
        _write(folder / VERIFICATION, record)
        records.append(record)
    return {"run_dir": str(run_dir), "points": records, "passed": all(record["passed"] for record in records)}


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error}.") from error
