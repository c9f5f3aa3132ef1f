"""Fit the roofline of this machine to half of its kernels; print its errors on the other half and on whole models.

    python experiments/calibrate_roofline.py [--models mobilevit_xxs resnet18] [--seeds 3] [--isa avx2] [--save FILE]

Kernels and packed models are sampled for less than a time slice each, and the lower quartile of the samples counts, so
that other programs do not: what remains of them are evicted caches. Models have random weights and see noise: what they
compute is void, what it costs is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from evoquant import kernels
from evoquant.calibrate.collect import collect
from evoquant.deploy import PackedModel, pack
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import CapturedModel, capture
from evoquant.hardware import Device, LatencyTable, Roofline, calibrate_roofline, load_device, reachable_cases
from evoquant.hardware.table import Case, Entry, key_of
from evoquant.models import create
from evoquant.space import preset_plan
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

WIDTHS = ((8, 8), (7, 8), (6, 8), (5, 8), (4, 8), (8, 4), (4, 4))
PRECISIONS = [FLOAT, *(LayerQuantConfig(weight_bits=w, activation_bits=a) for w, a in WIDTHS)]
PLANS = ("fp32", "w8a8", "w6a6", "w4a8", "w4a4")
SAMPLES = 25
SECONDS_PER_SAMPLE = 3e-4
EVICTED_BYTES = 65_536
"""Streamed through the first cache before each run of a kernel: in a network, other kernels have run since."""
LOWER_QUARTILE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilevit_xxs", "deit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--isa", help="instruction set of the kernels, such as avx2")
    parser.add_argument("--save", type=Path, help="write the table of the kernels here")
    arguments = parser.parse_args()
    device = load_device("host_cpu")
    captured = {name: captured_model(name) for name in arguments.models}
    table = measured([case for model in captured.values() for case in cases_of(model, device)], arguments.isa)
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
    for name, model in captured.items():
        devices = [found.device for found in fitted.values()]
        for line in whole_models(name, model, devices, arguments.isa):
            print(line)


def captured_model(name: str) -> CapturedModel:
    model = create(name).eval()
    shape = model.pretrained_cfg["input_size"]
    return capture(model, shape, name=name)


def cases_of(captured: CapturedModel, device: Device) -> Iterator[Case]:
    graph = captured.graph
    yield from reachable_cases(graph, {op.name: PRECISIONS for op in graph.ops}, device, kernels)


def measured(cases: list[Case], isa: str | None) -> LatencyTable:
    wanted = {key_of(case): kernels.KernelCase(case.op, case.shape, case.precision) for case in cases}
    timings = kernels.measure(
        wanted.values(),
        seconds_per_case=SAMPLES * SECONDS_PER_SAMPLE,
        repetitions=SAMPLES,
        isa=isa,
        evict_bytes=EVICTED_BYTES,
    )
    entries = {
        key: Entry(float(np.percentile(timing.samples, LOWER_QUARTILE)), timing.iqr_ms)
        for key, timing in zip(wanted, timings, strict=True)
    }
    return LatencyTable(kernels.fingerprint(threads=1, isa=isa), 1, entries)


def whole_models(name: str, captured: CapturedModel, devices: list[Device], isa: str | None) -> Iterator[str]:
    """Rows of the table: packed models beside the predictions of each fitted device."""
    images = torch.randn(2, *captured.graph.input_shape[1:], generator=torch.Generator().manual_seed(0))
    inputs = sorted({source for op in captured.graph.ops for source in op.inputs})
    operands = OperandCache(captured, collect(captured.program, inputs, iter([images])))
    for plan_name in PLANS:
        plan = preset_plan(plan_name, captured.graph, {})
        packed = pack(captured, operands, plan, isa=isa)
        taken = packed_ms(packed, images[:1])
        predicted = [Roofline(device, threads=1).latency(captured.graph, plan).ms for device in devices]
        ratio = float(np.median(predicted)) / taken
        shown = ", ".join(f"{value:.3g}" for value in predicted)
        yield f"| {name} | {plan_name} | {taken:.3g} | {shown} | {ratio:.2f} |"


def packed_ms(packed: PackedModel, image: torch.Tensor) -> float:
    """Lower quartile of the time that this thread computes for one image, without that of other programs."""
    run: Callable[[int], float] = packed.timer(image)
    run(3)
    samples = []
    for _ in range(SAMPLES):
        started = time.thread_time()
        run(1)
        samples.append(1e3 * (time.thread_time() - started))
    return float(np.percentile(samples, LOWER_QUARTILE))


if __name__ == "__main__":
    main()
