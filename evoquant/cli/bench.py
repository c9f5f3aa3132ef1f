"""``evoquant bench``: what things cost on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from evoquant.calibrate import collect
from evoquant.cli.options import Architecture, AsJson, ExperimentFile, unweighted
from evoquant.cli.output import show
from evoquant.config import load_experiment
from evoquant.deploy.bench import PRECISIONS as MODEL_PRECISIONS
from evoquant.deploy.bench import bench_model
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model, load_model, prepare, transform_of
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import CapturedModel, capture
from evoquant.hardware import Device, load_device
from evoquant.kernels.bench import PRECISIONS, bench_kernels, layers_of
from evoquant.run import build_space
from evoquant.space import UNIFORM_PRESETS, SearchSpace, preset_plan

KERNEL_MODELS = ("mobilevit_xxs", "mobilevit_s", "deit_tiny_patch16_224", "resnet18", "mobilenetv2_100")
WHOLE_MODELS = ("mobilevit_xxs", "deit_tiny_patch16_224")
HOST = "host_cpu"
CALIBRATION_IMAGES = 8
BASELINES = {
    "times_onnxruntime_fp32": "ONNX Runtime FP32",
    "times_best_onnxruntime_int8": "its fastest INT8",
    "times_evoquant_fp32": "our FP32",
    "times_evoquant_w8a8": "our W8A8",
}
"""Ratios that are shown; all others are in the JSON document."""

APP = typer.Typer(help="Benchmarks of this machine.", no_args_is_help=True)


@APP.command("simulation")
def simulation(
    experiment: ExperimentFile,
    repetitions: Annotated[int, typer.Option(help="Rounds; the median ratio counts.")] = 5,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Time of one candidate evaluation as a ratio to one floating-point pass over the same images."""
    settings = load_experiment(experiment).of_architecture(architecture)
    bench = prepare(settings)
    images = bench.evaluator.images("selection")
    plans = {name: preset_plan(name, bench.captured.graph, bench.classes) for name in UNIFORM_PRESETS}

    def float_pass() -> None:
        with torch.inference_mode():
            for batch in images.batches:
                bench.captured.program(batch)

    def candidate(name: str) -> Callable[[], None]:
        return lambda: void(bench.evaluator.evaluate(plans[name], split="selection"))

    for name in plans:
        candidate(name)()
    rounds = [
        {"float": _seconds(float_pass), **{name: _seconds(candidate(name)) for name in plans}}
        for _ in range(repetitions)
    ]
    cases = [
        {
            "precision": name,
            "ratio": statistics.median(entry[name] / entry["float"] for entry in rounds),
            "seconds": statistics.median(entry[name] for entry in rounds),
        }
        for name in plans
    ]
    document = {
        "model": settings.model.name,
        "images": len(images.labels),
        "batch_size": settings.evaluation.batch_size,
        "threads": settings.evaluation.threads,
        "float_seconds": statistics.median(entry["float"] for entry in rounds),
        "repetitions": repetitions,
        "cases": cases,
    }
    show(document, as_json=as_json, text=_show)


@APP.command("kernels")
def kernels(
    model: Annotated[list[str] | None, typer.Option(help="timm name; repeat for several.", show_default=False)] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Such as fp32, w8a8, w4a8; repeat for several.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every kernel.")] = 1,
    isa: Annotated[str | None, typer.Option(help="Instruction set, such as avx2.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(help="Time for each shape and precision.")] = 0.02,
    as_json: AsJson = False,
) -> None:
    """Time the layer shapes of models on the native kernels, beside ONNX Runtime in the same rounds."""
    names = model or list(KERNEL_MODELS)
    graphs = [captured_model(unweighted(name)).graph for name in names]
    document = bench_kernels(
        layers_of(graphs),
        precisions=precision or PRECISIONS,
        threads=threads,
        isa=isa,
        seconds_per_case=seconds,
    )
    show(document, as_json=as_json, text=_show_kernels)


def _show_kernels(console: Console, document: Mapping[str, Any]) -> None:
    for case in document["cases"]:
        shape = "x".join(map(str, case["shape"]))
        onnx = [case["onnxruntime_fp32_ms"], case["onnxruntime_int8_ms"]]
        beside = " / ".join("-" if value is None else f"{value:.4f}" for value in onnx)
        console.print(
            f"{case['op']} {shape} {case['precision']}: {case['ms']:.4f} ms, {case['gmacs_per_s']:.1f} GMAC/s "
            f"(ONNX Runtime FP32 / INT8: {beside} ms)"
        )
    console.print_json(data=document["summary"])


@APP.command("model")
def model(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (YAML) with weights and images.", show_default=False)
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--model", help="timm name, without weights; repeat for several.", show_default=False),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Preset such as fp32, w8a8, w4a8; repeat for several.", show_default=False)
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; repeat for several.", show_default=False, min=1)
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Instruction set, such as avx2.", show_default=False)] = None,
    genomes: Annotated[int, typer.Option(help="Random genomes for the sum of kernels; 0 for none.", min=0)] = 20,
    rounds: Annotated[int, typer.Option(help="Samples of each.", min=1)] = 9,
    seconds: Annotated[float, typer.Option(help="Length of one sample of a whole model.")] = 0.1,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Time whole packed models beside ONNX Runtime in the same rounds, and the sum of kernels beside both."""
    if experiment is not None and name:
        raise ConfigurationError("Give an experiment file, or --model NAME.")
    subjects = (
        [_prepared(experiment, architecture)]
        if experiment is not None
        else [_untrained(one) for one in name or list(WHOLE_MODELS)]
    )
    documents = [
        bench_model(
            *subject,
            threads=threads or [1],
            isa=isa,
            precisions=precision or MODEL_PRECISIONS,
            genomes=genomes,
            rounds=rounds,
            seconds=seconds,
        )
        for subject in subjects
    ]
    show({"models": documents}, as_json=as_json, text=_show_models)


Subject = tuple[nn.Module, CapturedModel, OperandCache, SearchSpace, Device, list[Tensor]]
"""What ``bench_model`` times."""


def _prepared(experiment: Path, architecture: str | None) -> Subject:
    """The model of an experiment with its weights, calibrated on its images."""
    settings = load_experiment(experiment).of_architecture(architecture)
    bench = prepare(settings)
    device = load_device(settings.target.device[0])
    if not device.is_this_machine:
        device = load_device(HOST)
    images = [image[None] for image in bench.evaluator.images("selection").batches[0][:CALIBRATION_IMAGES]]
    space = build_space(settings, bench.captured.graph, device)
    return load_model(settings), bench.captured, bench.evaluator.operands, space, device, images


def _untrained(name: str) -> Subject:
    """A model with its initial weights, calibrated on noise: what it computes is void, what it costs is not."""
    settings = unweighted(name)
    model = load_model(settings)
    shape = transform_of(model, settings).config.input_size
    captured = capture(model, shape, name=name)
    images = torch.randn(CALIBRATION_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    inputs = sorted({source for op in captured.graph.ops for source in op.inputs})
    statistics = collect(captured.program, inputs, iter([images]))
    device = load_device(HOST)
    space = build_space(settings, captured.graph, device)
    return model, captured, OperandCache(captured, statistics), space, device, [image[None] for image in images]


def _show_models(console: Console, document: Mapping[str, Any]) -> None:
    for entry in document["models"]:
        size = "x".join(map(str, entry["image_size"]))
        console.print(f"{entry['model']} ({size}, {entry['macs'] / 1e6:.0f} MMAC), {entry['machine']['isa']}")
        for whole in entry["whole"]:
            console.print(f"  {whole['threads']} thread(s), {whole['clock']} time")
            for name, latency in whole["times"].items():
                console.print(f"    {name}: {latency['median_ms']:.3f} ms (fastest {latency['fastest_ms']:.3f})")
            for name, ratios in whole["ratios"].items():
                others = ", ".join(
                    f"{ratios[key]:.2f} x as fast as {told}"
                    for key, told in BASELINES.items()
                    if ratios.get(key) is not None
                )
                if others:
                    console.print(f"    {name}: {others}", soft_wrap=True)
        for name, reason in entry["missing"].items():
            console.print(f"  not timed: {name} ({reason})", markup=False)
        if entry["table"] is not None:
            _show_table(console, entry["table"])


def _show_table(console: Console, table: Mapping[str, Any]) -> None:
    for genome in table["genomes"]:
        console.print(
            f"    {genome['id']}: {genome['table_ms']:.3f} ms by the sum of kernels, {genome['measured_ms']:.3f} ms "
            f"measured, ratio {genome['ratio']:.3f}"
        )
    correlation = table["rank_correlation"]
    console.print(
        f"  sum of kernels: {table['within_tolerance']} of {len(table['genomes'])} genomes within "
        f"{table['tolerance']:.0%}, largest error {table['largest_error']:.1%}, mean {table['mean_error']:+.1%}, "
        f"rank correlation {'-' if correlation is None else format(correlation, '.3f')}"
    )


def void(_value: object) -> None:
    """Drop a result."""


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _show(console: Console, document: Mapping[str, Any]) -> None:
    console.print(
        f"{document['model']}: {document['images']} images in batches of {document['batch_size']}, "
        f"{document['threads']} thread(s), float {document['float_seconds']:.2f} s"
    )
    for case in document["cases"]:
        console.print(f"{case['precision']}: {case['ratio']:.2f} x the float pass ({case['seconds']:.2f} s)")
