"""``evoquant report``: draw what a run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from evoquant.cli.options import AsJson, RunFolder
from evoquant.cli.output import show
from evoquant.config import load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.report import write_report
from evoquant.run import read_fronts
from evoquant.search import query
from evoquant.types.front import FrontDocument

LIMITS = ("accuracy_drop_pp", "latency_ms", "energy_mj", "memory_mb")


def report(
    run_dir: RunFolder,
    max_drop: Annotated[float | None, typer.Option(help="Most top-1 points lost.", show_default=False)] = None,
    max_latency: Annotated[float | None, typer.Option(help="Most milliseconds.", show_default=False)] = None,
    max_energy: Annotated[float | None, typer.Option(help="Most millijoules.", show_default=False)] = None,
    max_memory: Annotated[float | None, typer.Option(help="Most megabytes.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the plots and the report again, and list the points within limits."""
    fronts = read_fronts(run_dir)
    front = fronts[run_dir]
    config = run_dir / "config.yaml"
    graphs = {
        name: captured_model(alone).graph
        for name, alone in (load_experiment(config).by_architecture() if config.exists() else {}).items()
    }
    others = tuple(entry for entry in fronts.values() if entry.device != front.device)
    fronts[run_dir] = replace(front, other_targets=others)
    pages = {folder: write_report(folder, entry, graphs) for folder, entry in fronts.items()}
    within = _within(front, (max_drop, max_latency, max_energy, max_memory))
    document = {
        "run_dir": str(run_dir),
        "report": str(pages[run_dir]),
        "reports": {entry.device: str(pages[folder]) for folder, entry in fronts.items()},
        "knee": front.knee,
        "verdict": front.verdict,
        "points": [{"id": point.id, "name": point.name, "objectives": dict(point.objectives)} for point in within],
    }
    show(document, as_json=as_json, text=_show)


def _within(front: FrontDocument, limits: tuple[float | None, ...]) -> list[Any]:
    if not front.front:
        raise ConfigurationError("The run has found no point yet.")
    values = [[point.objectives[name] for name in LIMITS] for point in front.front]
    return [front.front[index] for index in query(values, limits)]


def _show(console: Console, document: Mapping[str, Any]) -> None:
    console.print(document["verdict"])
    for point in document["points"]:
        values = point["objectives"]
        figures = ", ".join(f"{name} {values[name]:.4g}" for name in LIMITS)
        marked = " (knee)" if point["id"] == document["knee"] else ""
        console.print(f"{point['id']}{marked} {point['name']}: {figures}")
    if not document["points"]:
        console.print("No point of the front is within these limits.")
    console.print(f"Written: {document['report']}")
