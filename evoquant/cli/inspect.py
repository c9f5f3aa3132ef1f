"""``evoquant inspect``: what a model is made of, and what each part may become."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant.cli.options import Architecture, AsJson, unweighted
from evoquant.cli.output import show
from evoquant.config import Experiment, TargetSpec, load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.graph import CapturedModel, published_macs
from evoquant.hardware import Device, Kind, load_device
from evoquant.run import build_space
from evoquant.run.barred import device_choices
from evoquant.space import NO_EFFECT, SearchSpace

GROUND = re.compile(rf" \(((?:{'|'.join(Kind)}): .*)\)$")
"""The end of a reason that a device file gives."""


def inspect(
    experiment: Annotated[Path | None, typer.Argument(help="Experiment file (YAML).", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="A timm name instead of an experiment.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Device instead of the experiment's.", show_default=False)] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space instead of the experiment's.", show_default=False)
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input.", show_default=False)] = None,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Show every operation with its role, its group and its legal choices, and the size of the space."""
    settings = _settings(experiment, model, target, space, image_size, architecture)
    captured = captured_model(settings)
    device = load_device(settings.target.device[0])
    found = build_space(settings, captured.graph, device)
    show(_document(captured, found, device), as_json=as_json, text=_show)


def _settings(
    experiment: Path | None,
    model: str | None,
    target: str | None,
    space: str | None,
    image_size: int | None,
    architecture: str | None,
) -> Experiment:
    if (experiment is None) == (model is None):
        raise ConfigurationError("Give an experiment file, or --model NAME.")
    settings = load_experiment(experiment) if experiment is not None else unweighted(str(model))
    settings = settings.of_architecture(architecture)
    changes: dict[str, Any] = {}
    if target is not None:
        changes["target"] = TargetSpec(device=(target,), latency="roofline")
    if space is not None:
        changes["space"] = space
    if image_size is not None:
        changes["model"] = settings.model.model_copy(update={"image_size": image_size})
    return settings.model_copy(update=changes)


def _document(captured: CapturedModel, space: SearchSpace, device: Device) -> dict[str, Any]:
    """``macs`` counts as timm's tables do; ``product_macs`` is the sum over ``ops``."""
    graph = captured.graph
    choices = {group.name: space.choices(group.name) for group in space.groups}
    legal = device_choices(space, device)
    return {
        "model": graph.model,
        "image_size": graph.input_shape[-1],
        "device": device.name,
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
                "available": {axis: list(values) for axis, values in legal[group.name].available.items()},
                "barred": legal[group.name].barred,
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
    grounds: dict[str, int] = {}
    alike: dict[str, list[str]] = {}
    for group in document["groups"]:
        alike.setdefault("\n".join(_choice_lines(group, grounds)), []).append(group["name"])
    for lines, names in alike.items():
        others = f" and {len(names) - 1} more groups like it" if len(names) > 1 else ""
        console.print(f"{names[0]}{others}\n{lines}", markup=False, soft_wrap=True)
    for ground, number in grounds.items():
        console.print(f"[{number}] {ground}", markup=False, soft_wrap=True)
    console.print(
        f"{document['macs'] / 1e9:.3f} GMACs, {document['parameters'] / 1e6:.2f} M parameters, "
        f"{len(document['groups'])} groups, 10^{document['space_size_log10']:.0f} plans"
    )


def _choice_lines(group: Mapping[str, Any], grounds: dict[str, int]) -> Iterator[str]:
    """What a group may be, and why not more; the grounds of a device are numbered and kept for the end."""

    def numbered(ground: re.Match[str]) -> str:
        return f" [{grounds.setdefault(ground[1], len(grounds) + 1)}]"

    yield f"  {group['phenotypes']} choices"
    for axis, values in group["available"].items():
        yield f"  {axis}: {', '.join(values)}"
    for axis, reasons in group["barred"].items():
        alike: dict[str, list[str]] = {}
        for value, reason in reasons.items():
            alike.setdefault(reason, []).append(value)
        for reason, barred in alike.items():
            if reason != NO_EFFECT:
                yield f"  barred, {axis} {', '.join(barred)}: {GROUND.sub(numbered, reason)}"
