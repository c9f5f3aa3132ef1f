"""``evoquant search``: from an experiment to its Pareto front."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant.api import run_evolution_sync
from evoquant.cli.options import AsJson, Effort, EffortName, ExperimentFile
from evoquant.cli.output import ExitCode, show
from evoquant.cli.progress import SearchProgress
from evoquant.config import Experiment, load_experiment, with_effort
from evoquant.evaluate import captured_model, prepare
from evoquant.report import write_report
from evoquant.run import build_space, timed_promise
from evoquant.run.latency import latency_source
from evoquant.run.targets import load_devices, target_folders
from evoquant.types.front import FrontDocument

COLUMNS = (
    ("kl", "KL", 1.0, "{:.4f}"),
    ("accuracy_drop_pp", "drop pp", 1.0, "{:.2f}"),
    ("latency_ms", "ms", 1.0, "{:.3f}"),
    ("energy_mj", "mJ", 1.0, "{:.3f}"),
    ("memory_mb", "MB", 1.0, "{:.3f}"),
    ("model_size_bytes", "size MB", 1e-6, "{:.3f}"),
)


def search(
    experiment: ExperimentFile,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/NAME]", show_default=False)] = None,
    effort: Effort = EffortName.DEFAULT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the size, search nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search the Pareto front of per-layer precision. The same command again goes on where it stopped."""
    settings = with_effort(load_experiment(experiment), effort.value)
    if dry_run:
        show(_dry_run(settings), as_json=as_json, text=_show_dry_run)
        return
    folder = settings.output.dir / settings.name if run_dir is None else run_dir
    with SearchProgress() as progress, redirect_stdout(sys.stderr):  # Ray prints what it has to say
        front = run_evolution_sync(settings, run_dir=folder, on_event=progress)
    graphs = {name: captured_model(alone).graph for name, alone in settings.by_architecture().items()}
    fronts = (front, *front.other_targets)
    folders = target_folders(folder, load_devices(settings))
    for entry, places in zip(fronts, folders, strict=True):
        for place in places:
            write_report(place, entry if place == folder else replace(entry, other_targets=()), graphs)
    document = front.to_dict()
    del document["evaluated"]
    targets = [_target(entry, places[0]) for entry, places in zip(fronts, folders, strict=True)]
    show({"run_dir": str(folder), **document, "targets": targets}, as_json=as_json, text=_show_fronts)
    if any(entry.status == "infeasible" for entry in fronts):
        raise SystemExit(ExitCode.INFEASIBLE)


TARGET_FIELDS = (
    "device", "status", "evaluations", "failures", "stopped", "objectives", "hypervolume", "reference_point", "knee",
    "verdict", "front", "baselines", "comparisons",
)  # fmt: skip
"""What is said of each device of a run; the rest is common to all."""


def _target(front: FrontDocument, folder: Path) -> dict[str, Any]:
    document = front.to_dict()
    said = {"run_dir": str(folder), **{name: document[name] for name in TARGET_FIELDS}}
    return said | {name: front.provenance[name] for name in ("latency_kind", "latency")}


OF_ARCHITECTURE = ("model", "macs", "operations", "groups", "space_size_log10", "seconds_per_evaluation")
"""What is said before the search of each architecture; the budget is common to all."""


def _dry_run(settings: Experiment) -> dict[str, Any]:
    if settings.architectures:
        rows = {str(name): _dry_run(alone) for name, alone in settings.by_architecture().items()}
        return {
            "name": settings.name,
            "evaluations": settings.search.evaluations,
            "seconds": max(row["seconds"] for row in rows.values()),
            "architectures": {name: {key: row[key] for key in OF_ARCHITECTURE} for name, row in rows.items()},
        }
    bench = prepare(settings)
    graph, promised = bench.captured.graph, timed_promise(bench)
    images = len(bench.evaluator.images("selection").labels)
    devices = load_devices(settings)
    spaces = [build_space(settings, graph, device) for device in devices.values()]
    return {
        "name": settings.name,
        "model": graph.model,
        "macs": graph.macs,
        "operations": len(graph.ops),
        "groups": len(graph.groups),
        "space_size_log10": spaces[0].size_log10,
        "targets": [
            {
                "device": device.name,
                "latency": latency_source(settings.target, name, device).told,
                "space_size_log10": space.size_log10,
            }
            for (name, device), space in zip(devices.items(), spaces, strict=True)
        ],
        "evaluations": promised.evaluations,
        "selection_images": images,
        "forward_passes": promised.evaluations * images,
        "seconds_per_evaluation": promised.seconds_per_evaluation,
        "seconds": promised.seconds,
        "disk_mb": promised.disk_mb,
        "memory_mb": promised.memory_mb,
    }


def _show_dry_run(console: Console, document: Mapping[str, Any]) -> None:
    for name, value in document.items():
        console.print(f"{name}: {value}")


def _show_fronts(console: Console, document: Mapping[str, Any]) -> None:
    common = {name: value for name, value in document.items() if name not in ("run_dir", "targets")}
    for target in document["targets"]:
        own = {name: target[name] for name in TARGET_FIELDS}
        _show_front(console, FrontDocument.from_dict({**common, **own, "evaluated": []}))
        console.print(f"Latency: {target['latency']}.", markup=False)
        console.print(f"Written to {target['run_dir']}: pareto.json, pareto.yaml, pareto.csv, plots, report.html\n")


def _show_front(console: Console, front: FrontDocument) -> None:
    table = Table(title=f"{front.model} on {front.device}: {len(front.front)} points, {front.status}")
    table.add_column("point")
    table.add_column("precision")
    for _, label, _, _ in COLUMNS:
        table.add_column(label, justify="right")
    table.add_column("test top-1 (95 %)", justify="right")
    for point in (*front.front, *front.baselines):
        marked = f"{point.id} (knee)" if point.id == front.knee else point.id
        cells = [style.format(point.objectives[name] * unit) for name, _, unit, style in COLUMNS]
        test = "" if point.test is None else "{:.2f} ({:.2f} to {:.2f})".format(point.test.top1, *point.test.ci95)
        table.add_row(marked, point.name, *cells, test, style="bold" if point.id == front.knee else None)
    console.print(table)
    for each in front.architectures:
        own = each.selection
        members = sum(point.architecture == each.name for point in front.front)
        console.print(
            f"{each.name}: {each.model} at {each.image_size} pixels, float top-1 {own.top1:.2f}, cross-entropy "
            f"{own.cross_entropy:.4f} (offset {own.offset:.4f} ± {own.offset_stderr:.4f}) on {own.images} selection "
            f"images, {each.evaluations} evaluations, {members} points",
            markup=False,
            soft_wrap=True,
        )
    for entry in front.comparisons:
        console.print(f"{entry.name}: hypervolume {entry.hypervolume:.4f} with {entry.images} images")
    console.print(front.verdict)
    console.print(f"Hypervolume {front.hypervolume:.4f} after {front.evaluations} evaluations, {front.seconds:.0f} s.")
