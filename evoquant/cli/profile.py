"""``evoquant profile``: time what a space can reach on this machine, or write what to time on another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant import kernels
from evoquant.cli.options import Architecture, AsJson, ExperimentFile
from evoquant.cli.output import STATUS, show
from evoquant.config import Experiment, load_experiment
from evoquant.deploy import pack
from evoquant.deploy.measurement import kernel_threads
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model, prepare
from evoquant.hardware import Device, bundle_items, load_device, rapl, write_bundle
from evoquant.hardware.filling import table_path
from evoquant.hardware.measured import reachable_cases
from evoquant.run import build_space
from evoquant.run.latency import Choices, measured_table
from evoquant.run.targets import legal_presets, reachable
from evoquant.space import preset_plan
from evoquant.types import ModelGraph

METERED = ("fp32", "w8a8", "w4a8")
"""Plans whose energy is metered."""
METERED_SECONDS = 2.0
"""For each: the counters advance about every millisecond."""


def profile(
    experiment: ExperimentFile,
    target: Annotated[
        str | None, typer.Option(help="Device instead of the experiment's first one.", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Time nothing; write one-operation ONNX models and a runner for the device to this folder.",
            show_default=False,
        ),
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Meter whole packed models with the counters of the processor (RAPL).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this file.", show_default=False)] = None,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Time every distinct kernel, shape and precision that the search space can reach, alone on this machine."""
    settings = load_experiment(experiment).of_architecture(architecture)
    if bundle is not None and out is not None:
        raise ConfigurationError("--out is for the times of this machine; --bundle times nothing.")
    if energy:
        show(_metered(settings), as_json=as_json, text=_show_energy)
        return
    device = load_device(target or settings.target.device[0])
    if bundle is None and not device.is_this_machine:
        raise ConfigurationError(
            f"{device.title} is not this machine. Write what to time there with --bundle DIR, or time this machine "
            "with --target host_cpu."
        )
    graph = captured_model(settings).graph
    choices = reachable(build_space(settings, graph, device), legal_presets(graph, device)[0])
    if bundle is not None:
        show(_bundle(bundle, graph, choices, device), as_json=as_json, text=_show_bundle)
        return
    show(_timed(graph, choices, device, settings.target.threads, out), as_json=as_json, text=_show)


def _timed(graph: ModelGraph, choices: Choices, device: Device, threads: int, out: Path | None) -> dict[str, Any]:
    STATUS.print(f"timing {len(reachable_cases(graph, choices, device, kernels))} cases, {threads} thread(s)")
    table = measured_table(threads, device, graph, choices, kept=None)
    if out is not None:
        table.save(out)
    machine = kernels.fingerprint(threads=threads, isa=device.isa)
    return {
        "device": device.name,
        "machine": dict(machine),
        "table": str(out or table_path(machine, threads)),
        "entries": table.to_dict()["entries"],
    }


def _metered(settings: Experiment) -> dict[str, Any]:
    """Energy of whole packed models, all packages of the machine together, whatever else runs included."""
    counters = rapl.required_domains()
    bench = prepare(settings)
    image = bench.evaluator.images("selection").batches[0][:1]
    entries = []
    with kernel_threads(settings.target.threads):
        for name in METERED:
            plan = preset_plan(name, bench.captured.graph, bench.classes)
            run = pack(bench.captured, bench.evaluator.operands, plan).timer(image)
            repetitions = max(1, round(METERED_SECONDS / max(run(3) / 3, 1e-6)))
            used = rapl.measure_mj(partial(run, repetitions), repetitions=1) / repetitions
            entries.append({"plan": name, "energy_mj": used, "energy_kind": "measured", "inferences": repetitions})
    return {"counters": [counter.name for counter in counters], "threads": settings.target.threads, "entries": entries}


def _show_energy(console: Console, document: Mapping[str, Any]) -> None:
    console.print(f"RAPL, {', '.join(document['counters'])}, everything that ran meanwhile included")
    for entry in document["entries"]:
        console.print(f"{entry['plan']}: {entry['energy_mj']:.4g} mJ, mean of {entry['inferences']} inferences")


def _bundle(folder: Path, graph: ModelGraph, choices: Choices, device: Device) -> dict[str, Any]:
    items = list(bundle_items(graph, choices, device, kernels))
    models = write_bundle(folder, items)
    return {
        "device": device.name,
        "bundle": str(folder),
        "models": models,
        "cases": len({(item.case.op, item.case.shape, item.case.precision) for item in items}),
        "runner": str(folder / "run.py"),
    }


def _show_bundle(console: Console, document: Mapping[str, Any]) -> None:
    console.print(
        f"{document['models']} models for {document['cases']} cases of {document['device']} in {document['bundle']}. "
        f"Copy it to the device and run: pip install onnxruntime; python run.py. Then use its table.json:\n"
        f"target: {{device: {document['device']}, latency: table, latency_table: table.json}}",
        markup=False,
        soft_wrap=True,
    )


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
