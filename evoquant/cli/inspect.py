"""``evoquant inspect``: what a model is made of, and what each part may become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant.cli.options import AsJson, unweighted
from evoquant.cli.output import show
from evoquant.config import Experiment, TargetSpec, load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.graph import CapturedModel, published_macs
from evoquant.hardware import load_device
from evoquant.run import build_space
from evoquant.space import SearchSpace

NO_EFFECT = "has no effect here"
"""Why most values are barred: another one means the same. Not worth a line."""


def inspect(
    experiment: Annotated[Path | None, typer.Argument(help="Experiment file (YAML).", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="A timm name instead of an experiment.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Device instead of the experiment's.", show_default=False)] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space instead of the experiment's.", show_default=False)
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show every operation with its role, its group and its legal choices, and the size of the space."""
    settings = _settings(experiment, model, target, space, image_size)
    captured = captured_model(settings)
    found = build_space(settings, captured.graph, load_device(settings.target.device[0]))
    show(_document(captured, found, settings.target.device[0]), as_json=as_json, text=_show)


def _settings(
    experiment: Path | None, model: str | None, target: str | None, space: str | None, image_size: int | None
) -> Experiment:
    if (experiment is None) == (model is None):
        raise ConfigurationError("Give an experiment file, or --model NAME.")
    settings = load_experiment(experiment) if experiment is not None else unweighted(str(model))
    changes: dict[str, Any] = {}
    if target is not None:
        changes["target"] = TargetSpec(device=(target,), latency="roofline")
    if space is not None:
        changes["space"] = space
    if image_size is not None:
        changes["model"] = settings.model.model_copy(update={"image_size": image_size})
    return settings.model_copy(update=changes)


def _document(captured: CapturedModel, space: SearchSpace, device: str) -> dict[str, Any]:
    """``macs`` counts as timm's tables do; ``product_macs`` is the sum over ``ops``."""
    graph = captured.graph
    choices = {group.name: space.choices(group.name) for group in space.groups}
    return {
        "model": graph.model,
        "image_size": graph.input_shape[-1],
        "device": device,
        "macs": published_macs(graph, captured.batch_norms),
        "product_macs": graph.macs,
        "batch_norms": {"folded": captured.batch_norms.folded, "remaining": list(captured.batch_norms.remaining)},
        "parameters": graph.parameters,
        "space_size_log10": space.size_log10,
        "groups": [
            {
                "name": group.name,
                "ops": list(group.ops),
                "phenotypes": choices[group.name].phenotypes,
                "available": {str(axis): list(values) for axis, values in choices[group.name].available.items()},
                "barred": {str(axis): dict(values) for axis, values in choices[group.name].barred.items()},
            }
            for group in space.groups
        ],
        "ops": [
            {
                "name": op.name,
                "kind": op.kind.value,
                "role": op.role.value,
                "block": op.block,
                "block_kind": op.block_kind,
                "group": op.group,
                "macs": op.macs,
                "weight_count": op.weight_count,
                "choices": choices[op.group].phenotypes,
            }
            for op in graph.ops
        ],
    }


def _show(console: Console, document: Mapping[str, Any]) -> None:
    table = Table(title=f"{document['model']} at {document['image_size']} px on {document['device']}")
    for name in ("operation", "kind", "role", "block", "MMACs", "weights", "choices"):
        table.add_column(name, justify="right" if name in ("MMACs", "weights", "choices") else "left")
    for op in document["ops"]:
        table.add_row(
            op["name"], op["kind"], op["role"], op["block_kind"], f"{op['macs'] / 1e6:.2f}", str(op["weight_count"]),
            str(op["choices"]),
        )  # fmt: skip
    console.print(table)
    barred = {
        reason for group in document["groups"] for values in group["barred"].values() for reason in values.values()
    }
    for reason in sorted(barred - {NO_EFFECT}):
        console.print(f"barred: {reason}", markup=False)
    console.print(
        f"{document['macs'] / 1e9:.3f} GMACs, {document['parameters'] / 1e6:.2f} M parameters, "
        f"{len(document['groups'])} groups, 10^{document['space_size_log10']:.0f} plans"
    )
