"""``evoquant profile``: time what a space can reach on this machine, or write what to time on another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant import kernels
from evoquant.cli.options import AsJson, ExperimentFile
from evoquant.cli.output import STATUS, show
from evoquant.config import load_experiment
from evoquant.evaluate import captured_model
from evoquant.hardware import load_device
from evoquant.hardware.filling import table_path
from evoquant.hardware.measured import reachable_cases
from evoquant.resources import cache_folder
from evoquant.run import build_space
from evoquant.run.latency import measured_table
from evoquant.run.start import reachable


def profile(
    experiment: ExperimentFile,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Time every distinct kernel, shape and precision that the search space can reach, alone on this machine."""
    settings = load_experiment(experiment)
    graph = captured_model(settings).graph
    device = load_device("host_cpu")
    choices = reachable(build_space(settings, graph, device))
    threads = settings.target.threads
    STATUS.print(f"timing {len(reachable_cases(graph, choices, device, kernels))} cases, {threads} thread(s)")
    table = measured_table(threads, device, graph, choices)
    wanted = table.only(reachable_cases(graph, choices, device, kernels))
    if out is not None:
        wanted.save(out)
    machine = kernels.fingerprint(threads=threads)
    kept = table_path(machine, threads, cache_folder("latency"))
    document = {"machine": dict(machine), "table": str(out or kept), **{"entries": wanted.to_dict()["entries"]}}
    show(document, as_json=as_json, text=_show)


def _show(console: Console, document: Mapping[str, Any]) -> None:
    table = Table(title=f"{len(document['entries'])} entries in {document['table']}")
    for name in ("kernel", "shape", "precision", "median ms", "IQR ms", "kind"):
        table.add_column(name, justify="right" if name.endswith("ms") else "left")
    for entry in document["entries"]:
        table.add_row(
            entry["op"],
            "x".join(map(str, entry["shape"])),
            entry["precision"],
            f"{entry['median_ms']:.4f}",
            f"{entry['iqr_ms']:.4f}",
            entry["kind"],
        )
    console.print(table)
