"""``evoquant evaluate`` and ``evoquant compare``: what plans are worth, outside of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from evoquant.api.compare import compare_quantization_methods, judged_plan
from evoquant.cli.options import Architecture, AsJson, ExperimentFile
from evoquant.cli.output import STATUS, show
from evoquant.config import Experiment, ImageSet, load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import prepare
from evoquant.evaluate.finalist import load_finalist
from evoquant.evaluate.methods import CHEAP_METHODS, METHODS, PRECISIONS
from evoquant.run.plans import architecture_of, complete, read_plan

Split = Literal["selection", "test"]
FITTED = ".safetensors"
"""Files of finalists end with it."""


def evaluate(
    experiment: ExperimentFile,
    plan: Annotated[
        str, typer.Option(help="Preset, plan file, RUN_DIR#POINT, or fitted weights (FILE.safetensors).")
    ] = "w8a8",
    split: Annotated[Split, typer.Option(help="Image set to judge on.")] = "test",
    images: Annotated[Path | None, typer.Option(help="Other images of the same task.", show_default=False)] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels (CSV: file,label).", show_default=False)] = None,
    fitted: Annotated[
        bool, typer.Option("--fitted", help="Fit weights, scales and biases to the plan first, for minutes.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Write the fitted weights to it.", show_default=False)] = None,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Judge one plan: accuracy with its interval, latency, energy and memory; beside its own floating-point model."""
    alone = load_experiment(experiment).of_architecture(architecture or architecture_of(plan))
    settings = _with_images(alone, split, images, labels)
    if save is not None and not fitted:
        raise ConfigurationError("--save goes with --fitted.")
    bench = prepare(settings)
    if plan.endswith(FITTED):
        finalist = load_finalist(Path(plan))
        complete(dict(finalist.plan), bench.captured.graph, plan)
        figures = judged_plan(bench, finalist, split)
    else:
        chosen = read_plan(plan, bench.captured.graph, bench.classes)
        figures = judged_plan(bench, chosen, split, is_fitted=fitted, save=save)
    show({"plan": plan, "split": split, **figures}, as_json=as_json, text=_show_one)


def compare(
    experiment: ExperimentFile,
    split: Annotated[Split, typer.Option(help="Image set to judge on.")] = "test",
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one; repeat for more. One of {', '.join(METHODS)}.", show_default=False),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one; repeat for more. One of {', '.join(PRECISIONS)}.", show_default=False),
    ] = None,
    fitted: Annotated[bool, typer.Option("--fitted", help="Add the methods that fit weights for minutes.")] = False,
    run: Annotated[
        str | None,
        typer.Option(help="Point of a run: RUN_DIR#POINT. Default: the knee, if there is a run.", show_default=False),
    ] = None,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Judge the known methods, and what was evolved, on the same images."""
    settings = load_experiment(experiment)
    known = settings.output.dir / settings.name
    found = run or (f"{known}#knee" if (known / "pareto.json").is_file() else None)
    whose = None if found is None else architecture_of(found)
    settings = settings.of_architecture(architecture or whose)
    methods = compare_quantization_methods(
        settings,
        methods=method or (tuple(METHODS) if fitted else CHEAP_METHODS),
        precisions=precision or PRECISIONS,
        plans=[found] if found is not None and architecture in (None, whose) else [],
        split=split,
        on_method=lambda name: STATUS.print(name, markup=False),
    )
    show({"model": settings.model.name, "split": split, "methods": methods}, as_json=as_json, text=_show_many)


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
    if document["fit"] is not None:
        console.print(f"Kept: {document['fit']['kept']}, after {document['seconds']:.0f} s.")


def _show_many(console: Console, document: Mapping[str, Any]) -> None:
    methods = document["methods"]
    table = Table(title=f"{document['model']}: {methods[0]['images']} {document['split']} images")
    for name in ("method", "top-1 (95 %)", "drop pp", "KL", "ms", "mJ", "size MB", "s"):
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
            f"{entry['seconds']:.0f}",
        )
    console.print(table)
