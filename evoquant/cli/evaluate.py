"""``evoquant evaluate`` and ``evoquant compare``: what plans are worth, outside of a search."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from evoquant.cli.options import AsJson, ExperimentFile
from evoquant.cli.output import STATUS, show
from evoquant.config import Experiment, ImageSet, load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import prepare
from evoquant.run.judge import judge
from evoquant.run.plans import read_plan
from evoquant.space import PRESET_NAMES

Split = Literal["selection", "test"]


def evaluate(
    experiment: ExperimentFile,
    plan: Annotated[str, typer.Option(help="Preset, plan file, or RUN_DIR#POINT.")] = "w8a8",
    split: Annotated[Split, typer.Option(help="Image set to judge on.")] = "test",
    images: Annotated[Path | None, typer.Option(help="Other images of the same task.", show_default=False)] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels (CSV: file,label).", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Judge one plan: accuracy with its interval, latency, energy and memory."""
    settings = _with_images(load_experiment(experiment), split, images, labels)
    bench = prepare(settings)
    chosen = read_plan(plan, bench.captured.graph, bench.classes)
    show({"plan": plan, "split": split, **judge(bench, chosen, split)}, as_json=as_json, text=_show_one)


def compare(
    experiment: ExperimentFile,
    split: Annotated[Split, typer.Option(help="Image set to judge on.")] = "test",
    run: Annotated[str | None, typer.Option(help="Add a point of a run: RUN_DIR#POINT.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the known methods on the same images."""
    bench = prepare(load_experiment(experiment))
    methods = []
    for name in (*PRESET_NAMES, *([run] if run else [])):
        STATUS.print(name, markup=False)
        started = time.perf_counter()
        judged = judge(bench, read_plan(name, bench.captured.graph, bench.classes), split)
        methods.append({"name": name, "seconds": time.perf_counter() - started, **judged})
    show({"model": bench.captured.graph.model, "split": split, "methods": methods}, as_json=as_json, text=_show_many)


def _with_images(settings: Experiment, split: Split, images: Path | None, labels: Path | None) -> Experiment:
    if images is None:
        if labels is not None:
            raise ConfigurationError("--labels goes with --images.")
        return settings
    given = ImageSet(
        images=str(images.absolute()), labels=None if labels is None else labels.absolute(), count=None, seed=None
    )
    return settings.model_copy(update={"data": settings.data.model_copy(update={split: given})})


def _show_one(console: Console, document: Mapping[str, Any]) -> None:
    _show_many(
        console,
        {"model": document["plan"], "split": document["split"], "methods": [{"name": document["plan"], **document}]},
    )
    console.print(f"Latency is {document['latency_kind']} on {document['device']}, batch size 1.")


def _show_many(console: Console, document: Mapping[str, Any]) -> None:
    methods = document["methods"]
    table = Table(title=f"{document['model']}: {methods[0]['images']} {document['split']} images")
    for name in ("method", "top-1 (95 %)", "drop pp", "KL", "ms", "mJ", "size MB"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for entry in methods:
        low, high = entry["top1_ci95"]
        table.add_row(
            entry["name"],
            f"{entry['top1']:.2f} ({low:.2f} to {high:.2f})",
            f"{entry['drop_pp']:+.2f} ± {entry['drop_stderr_pp']:.2f}",
            f"{entry['kl']:.5f}",
            f"{entry['latency_ms']:.3f}",
            f"{entry['energy_mj']:.3f}",
            f"{entry['model_size_bytes'] / 1e6:.3f}",
        )
    console.print(table)
