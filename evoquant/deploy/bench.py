"""The benchmark of whole models: ours at several precisions beside ONNX Runtime, and the sum of kernels beside both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor, nn

from evoquant import kernels
from evoquant.deploy import onnx_model
from evoquant.deploy.measurement import Comparison, Latency, clock_name, compare_with_table, measure_together
from evoquant.deploy.packed_model import PackedModel, pack
from evoquant.deploy.verification import LATENCY_TOLERANCE, cases_of
from evoquant.evaluate import Plan
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import CapturedModel
from evoquant.hardware import Device
from evoquant.hardware.measured import MeasuredLatency
from evoquant.hardware.table import LatencyTable
from evoquant.kernels import onnx_runtime
from evoquant.space import SearchSpace, preset_plan

PRECISIONS = ("fp32", "w8a8", "w4a8")
RANK_CORRELATION = 0.97
"""Least rank correlation of sum and measurement over random genomes."""


def bench_model(
    model: nn.Module,
    captured: CapturedModel,
    operands: OperandCache,
    space: SearchSpace,
    device: Device,
    images: Sequence[Tensor],
    *,
    threads: Sequence[int] = (1, 2),
    isa: str | None = None,
    precisions: Sequence[str] = PRECISIONS,
    genomes: int = 20,
    rounds: int = 7,
    seconds: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Time one model on this machine.

    Args:
        model: The original, for ONNX Runtime.
        captured: The same, captured.
        operands: Its scales and codes.
        space: Where random genomes come from.
        device: The host, for the sum of kernels.
        images: A few images of shape (1, channels, height, width); the first is timed, all calibrate ONNX Runtime.
        threads: Numbers of threads.
        isa: Instruction set of ours; None takes the best, capped by ``EVOQUANT_ISA``. ONNX Runtime is held to it where
            the machine can.
        precisions: Presets of ours.
        genomes: Random genomes whose sum of kernels is compared with the packed model, at the first number of threads;
            0 for none.
        rounds: Samples of each.
        seconds: Length of one sample of a whole model.
        seed: Of genomes and orders.

    Returns:
        ``machine``, ``onnxruntime_isa`` (None: its own choice), ``model``, ``image_size``, ``macs``, ``whole`` (for
        each number of threads the times of all and their ratios), ``table`` (for each genome sum and measurement, or
        None), ``missing`` (why something was not timed); plain JSON values.
    """
    plans = {f"evoquant_{name}": preset_plan(name, captured.graph, {}) for name in precisions}
    packed = {name: pack(captured, operands, plan, isa=isa) for name, plan in plans.items()}
    held_to = onnx_runtime.load(isa) if onnx_runtime.is_available() else None
    whole: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for count in threads:
        runs, reasons = onnx_model.timers(model, images, threads=count)
        missing |= reasons
        ours = {name: made.timer(images[0]) for name, made in packed.items()}
        found = measure_together({**ours, **runs}, threads=count, repetitions=rounds, seconds=seconds, seed=seed)
        whole.append({"threads": count, "clock": clock_name(count), "times": _times(found), "ratios": ratios(found)})
    return {
        "machine": kernels.fingerprint(threads=threads[0], isa=isa),
        "onnxruntime_isa": held_to,
        "model": captured.graph.model,
        "image_size": list(captured.graph.input_shape[1:]),
        "macs": captured.graph.macs,
        "whole": whole,
        "table": bench_table(
            captured,
            operands,
            space,
            device,
            images[0],
            threads=threads[0],
            isa=isa,
            genomes=genomes,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
        )
        if genomes
        else None,
        "fallbacks": {name: dict(made.fallbacks) for name, made in packed.items()},
        "missing": missing,
    }


def bench_table(
    captured: CapturedModel,
    operands: OperandCache,
    space: SearchSpace,
    device: Device,
    image: Tensor,
    *,
    threads: int = 1,
    isa: str | None = None,
    genomes: int = 20,
    rounds: int = 7,
    seconds: float = 0.01,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the sum of kernels with the packed model for random genomes, both timed in the same rounds.

    The genomes lie all over the space, from few bits to many: genes that are drawn alike for all of them would give
    every network the same mean, and ranks would tell noise from noise.
    """
    rng = np.random.default_rng(seed)
    plans = [space.decode(rng.binomial(space.upper_bounds, level)) for level in np.linspace(0.0, 1.0, genomes)]
    packed = {f"genome_{index:02d}": pack(captured, operands, plan, isa=isa) for index, plan in enumerate(plans)}
    cases = {name: cases_of(captured.graph, model.plan, device) for name, model in packed.items()}
    latency = MeasuredLatency(LatencyTable({}, threads, {}), device, kernels)
    graph = captured.graph
    found = compare_with_table(
        packed, image, latency, cases, graph, threads=threads, isa=isa, rounds=rounds, seconds=seconds, seed=seed
    )
    return {"threads": threads, "genomes": _genomes(found, packed), **agreement(list(found.values()))}


def agreement(found: Sequence[Comparison]) -> dict[str, Any]:
    """How well sums of kernels agree with packed models."""
    sums, measured = [entry.table_ms for entry in found], [entry.measured_ms for entry in found]
    errors = [entry.ratio - 1 for entry in found]
    correlation = float(spearmanr(sums, measured).statistic) if len(found) > 2 else math.nan
    return {
        "clock": found[0].clock if found else None,
        "tolerance": LATENCY_TOLERANCE,
        "least_rank_correlation": RANK_CORRELATION,
        "mean_error": float(np.mean(errors)) if errors else None,
        "largest_error": max(map(abs, errors), default=None),
        "within_tolerance": sum(abs(error) <= LATENCY_TOLERANCE for error in errors),
        "rank_correlation": None if math.isnan(correlation) else correlation,
    }


def ratios(found: Mapping[str, Latency]) -> dict[str, dict[str, float]]:
    """How often each of our precisions is faster than each other run, by the medians and by the fastest samples."""
    int8 = [entry for name, entry in found.items() if name.startswith("onnxruntime_int8")]
    result: dict[str, dict[str, float]] = {}
    for name, entry in found.items():
        if not name.startswith("evoquant_"):
            continue
        others = {other: value for other, value in found.items() if other != name}
        result[name] = {f"times_{other}": value.median_ms / entry.median_ms for other, value in others.items()}
        result[name] |= {f"times_{other}_fastest": v.fastest_ms / entry.fastest_ms for other, v in others.items()}
        if int8:
            best, fastest = min(value.median_ms for value in int8), min(value.fastest_ms for value in int8)
            result[name]["times_best_onnxruntime_int8"] = best / entry.median_ms
            result[name]["times_best_onnxruntime_int8_fastest"] = fastest / entry.fastest_ms
    return result


def _times(found: Mapping[str, Latency]) -> dict[str, Any]:
    return {name: entry.to_dict() for name, entry in found.items()}


def _genomes(found: Mapping[str, Comparison], packed: Mapping[str, PackedModel]) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "mean_weight_bits": _mean_bits(packed[name].plan),
            "table_ms": entry.table_ms,
            "measured_ms": entry.measured_ms,
            "measured_iqr_ms": entry.model.iqr_ms,
            "ratio": entry.ratio,
            "fallbacks": len(packed[name].fallbacks),
        }
        for name, entry in found.items()
    ]


def _mean_bits(plan: Plan) -> float:
    return float(np.mean([config.weight_bits for config in plan.values()]))
