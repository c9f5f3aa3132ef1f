"""``evoquant bench``: what things cost on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from evoquant.cli.options import AsJson, ExperimentFile, unweighted
from evoquant.cli.output import show
from evoquant.config import load_experiment
from evoquant.evaluate import captured_model, prepare
from evoquant.kernels.bench import PRECISIONS, bench_kernels, layers_of
from evoquant.space import UNIFORM_PRESETS, preset_plan

KERNEL_MODELS = ("mobilevit_xxs", "mobilevit_s", "deit_tiny_patch16_224", "resnet18", "mobilenetv2_100")

APP = typer.Typer(help="Benchmarks of this machine.", no_args_is_help=True)


@APP.command("simulation")
def simulation(
    experiment: ExperimentFile,
    repetitions: Annotated[int, typer.Option(help="Rounds; the median ratio counts.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Time of one candidate evaluation as a ratio to one floating-point pass over the same images."""
    settings = load_experiment(experiment)
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
