"""Fit the roofline of this machine to half of its kernels; print its errors on the other half and on whole models.

    python experiments/calibrate_roofline.py [--models mobilevit_xxs resnet18] [--seeds 3] [--isa avx2] [--save FILE]

Kernels and packed models are sampled in turn, for less than a time slice each, and the lower quartile of the samples
counts, so that other programs do not: what remains of them are evicted caches. Models have random weights and see
noise: what they compute is void, what it costs is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from evoquant import kernels
from evoquant.calibrate.collect import collect
from evoquant.deploy import PackedModel, pack
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import CapturedModel, capture
from evoquant.hardware import Device, LatencyTable, Roofline, calibrate_roofline, load_device, reachable_cases
from evoquant.hardware.table import Case, Entry, Key, key_of
from evoquant.models import create
from evoquant.space import preset_plan
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

WIDTHS = ((8, 8), (7, 8), (6, 8), (5, 8), (6, 6), (4, 8), (8, 4), (4, 4))
PRECISIONS = [FLOAT, *(LayerQuantConfig(weight_bits=w, activation_bits=a) for w, a in WIDTHS)]
PLANS = ("fp32", "w8a8", "w6a6", "w4a8", "w4a4")
ROUNDS = 5
"""Over all kernels, then all models: a time in which the machine is slow meets both."""
SAMPLES = 5
"""Of each in a round."""
SECONDS_PER_SAMPLE = 3e-4
Name = tuple[str, str]
"""Of a model and a plan."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilevit_xxs", "deit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--isa", help="instruction set of the kernels, such as avx2")
    parser.add_argument("--save", type=Path, help="write the table of the kernels here")
    arguments = parser.parse_args()
    device = load_device("host_cpu")
    captured = {name: captured_model(name) for name in arguments.models}
    cases = {
        key_of(case): kernels.KernelCase(case.op, case.shape, case.precision)
        for model in captured.values()
        for case in cases_of(model, device)
    }
    runs = {
        (name, plan): packed.timer(image)
        for name, model in captured.items()
        for plan, packed, image in packed_models(model, arguments.isa)
    }
    table, taken = measured(cases, runs, arguments.isa)
    if arguments.save:
        table.save(arguments.save)
    print(f"{table.machine['cpu']}, {table.machine['isa']}, one thread, {len(table.entries)} kernels")
    fitted = {seed: calibrate_roofline(table, device, seed=seed) for seed in range(arguments.seeds)}
    for seed, found in fitted.items():
        for half in ("fitted", "held_out"):
            errors = getattr(found, half)
            print(f"seed {seed} {half:8s}: {errors.entries} kernels, median {errors.median:.1%}, p90 {errors.p90:.1%}")
        print(f"  worst: {found.held_out.worst}")
    print("| model | plan | measured ms | predicted ms by seed | predicted / measured |")
    print("|---|---|---|---|---|")
    for (name, plan), milliseconds in taken.items():
        graph = captured[name].graph
        predicted = [
            Roofline(found.device, threads=1).latency(graph, preset_plan(plan, graph, {})).ms
            for found in fitted.values()
        ]
        shown = ", ".join(f"{value:.3g}" for value in predicted)
        ratios = ", ".join(f"{value / milliseconds:.2f}" for value in predicted)
        print(f"| {name} | {plan} | {milliseconds:.3g} | {shown} | {ratios} |")


def captured_model(name: str) -> CapturedModel:
    model = create(name).eval()
    shape = model.pretrained_cfg["input_size"]
    return capture(model, shape, name=name)


def cases_of(captured: CapturedModel, device: Device) -> Iterator[Case]:
    graph = captured.graph
    yield from reachable_cases(graph, {op.name: PRECISIONS for op in graph.ops}, device, kernels)


def packed_models(captured: CapturedModel, isa: str | None) -> Iterator[tuple[str, PackedModel, torch.Tensor]]:
    """The model packed for each plan, and an image for it."""
    images = torch.randn(2, *captured.graph.input_shape[1:], generator=torch.Generator().manual_seed(0))
    inputs = sorted({source for op in captured.graph.ops for source in op.inputs})
    operands = OperandCache(captured, collect(captured.program, inputs, iter([images])))
    for name in PLANS:
        yield name, pack(captured, operands, preset_plan(name, captured.graph, {}), isa=isa), images[:1]


def measured(
    cases: Mapping[Key, kernels.KernelCase], runs: Mapping[Name, Callable[[int], float]], isa: str | None
) -> tuple[LatencyTable, dict[Name, float]]:
    """Milliseconds of kernels, and of whole models."""
    kernel_samples: dict[Key, list[float]] = {key: [] for key in cases}
    model_samples: dict[Name, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS):
        timings = kernels.measure(
            cases.values(),
            seconds_per_case=SAMPLES * SECONDS_PER_SAMPLE,
            repetitions=SAMPLES,
            passes=1,
            seed=round_,
            isa=isa,
        )
        for key, timing in zip(cases, timings, strict=True):
            kernel_samples[key] += timing.samples
        for name, run in runs.items():
            model_samples[name] += thread_milliseconds(run)
    entries = {key: Entry(*quartile_and_spread(samples)) for key, samples in kernel_samples.items()}
    taken = {name: quartile_and_spread(samples)[0] for name, samples in model_samples.items()}
    return LatencyTable(kernels.fingerprint(threads=1, isa=isa), 1, entries), taken


def thread_milliseconds(run: Callable[[int], float]) -> Iterator[float]:
    """Times that this thread computes for one image, without those of other programs."""
    run(1)
    for _ in range(SAMPLES):
        started = time.thread_time()
        run(1)
        yield 1e3 * (time.thread_time() - started)


def quartile_and_spread(samples: list[float]) -> tuple[float, float]:
    low, high = np.percentile(samples, [25, 75])
    return float(low), float(high - low)


if __name__ == "__main__":
    main()
