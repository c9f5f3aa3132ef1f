"""The benchmark of the kernels: layer shapes of real models, beside ONNX Runtime and beside the instruction peaks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evoquant.kernels import onnx_baseline, onnx_runtime
from evoquant.kernels.case import FP32, KernelCase, KernelOp, case_of
from evoquant.kernels.machine import fingerprint
from evoquant.kernels.native import info, isa_number, native, set_threads
from evoquant.kernels.timing import interleave
from evoquant.kernels.workload import PackedRun, Run, workload
from evoquant.types import ModelGraph, Op, OpKind
from evoquant.types.precision import FLOAT

CODES = "w8a8-u8in-u8out"
"""Codes in and codes out, as ONNX Runtime's INT8 operators take and give them."""
PRECISIONS = (FP32, "w8a8", CODES, "w7a8", "w4a8", "w4a4", "w4a8-log2")
LARGE_K = 192
"""From this reduction length on, the share of the instruction peak is reported."""

_PEAK_ROUNDS = 200_000
_PEAK_SAMPLES = 7


def layers_of(graphs: Iterable[ModelGraph]) -> list[tuple[str, Op]]:
    """All products of some models, as ``bench_kernels`` takes them."""
    return [(graph.model, op) for graph in graphs for op in graph.ops]


def peaks(instructions: Iterable[str], isa: str | None = None) -> dict[str, float]:
    """GMAC/s of sequences of instructions in registers, on one thread: what no inner loop can exceed.

    Args:
        instructions: Formats of packed weights, and a depth where products are added in 16 bits: ``u8s8/4``.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.
    """
    number = isa_number(isa)
    result = {}
    for name in instructions:
        kind, _, depth = name.partition("/")
        samples = [native().peak(number, kind, int(depth or 0), _PEAK_ROUNDS) for _ in range(_PEAK_SAMPLES)]
        result[name] = max(samples) / 1e9
    return result


def bench_kernels(
    layers: Sequence[tuple[str, Op]],
    *,
    precisions: Sequence[str] = PRECISIONS,
    threads: int = 1,
    isa: str | None = None,
    seconds_per_case: float = 0.02,
    repetitions: int = 7,
    seed: int = 0,
) -> dict[str, Any]:
    """Time every distinct layer shape at each precision, with ONNX Runtime in the same rounds if it is installed.

    ONNX Runtime is held to the instruction set of the kernels where the machine can (``onnxruntime_isa`` in the result
    is None where it chose from all). Its INT8 times are those of codes in, codes or accumulators out; ``exact`` are
    those of operand types whose sums do not saturate on AVX2.

    Args:
        layers: Names of models and operations; see ``layers_of``. Equal shapes are timed once.
        precisions: What to time; see ``KernelCase.precision``.
        threads: Threads of the kernels and of ONNX Runtime.
        isa: Instruction set of the kernels; None takes the best, capped by ``EVOQUANT_ISA``.
        seconds_per_case: Time for each precision of a shape.
        repetitions: Samples of each.
        seed: Of operands and order.

    Returns:
        ``machine``, ``onnxruntime_isa``, ``peaks``, ``cases`` (each with op, model, layer, shape, precision,
        instructions (None where no packed weight is multiplied), threads, isa, ms, gmacs_per_s, onnxruntime_fp32_ms,
        onnxruntime_int8_ms, onnxruntime_exact_ms) and ``summary``; plain JSON values.

    Raises:
        KernelError: If the native module is missing or a shape has no kernel.
    """
    rng = np.random.default_rng(seed)
    isa = isa or info().used
    held_to = onnx_runtime.load(isa) if onnx_runtime.is_available() else None
    before = native().threads()
    set_threads(threads)
    cases: list[dict[str, Any]] = []
    try:
        for case, (model, op) in _distinct(layers).items():
            kernels = {
                precision: workload(replace(case, precision=precision), rng, isa=isa)
                for precision in precisions
                if _has_kernel(case.op, precision)
            }
            times = _time_shape(case, op, kernels, threads, seconds_per_case / repetitions, repetitions, rng)
            cases += [
                _entry(case, model, op, precision, run, threads, isa, times) for precision, run in kernels.items()
            ]
    finally:
        set_threads(before)
    best = peaks(dict.fromkeys(case["instructions"] for case in cases if case["instructions"]), isa)
    return {
        "machine": fingerprint(threads=threads, isa=isa),
        "onnxruntime_isa": held_to,
        "peaks": {"isa": isa, "gmacs_per_s": best},
        "cases": cases,
        "summary": summarize(cases, best),
    }


def _distinct(layers: Sequence[tuple[str, Op]]) -> dict[KernelCase, tuple[str, Op]]:
    found: dict[KernelCase, tuple[str, Op]] = {}
    for model, op in layers:
        found.setdefault(case_of(op, FLOAT), (model, op))
    return found


def _time_shape(
    case: KernelCase,
    op: Op,
    kernels: Mapping[str, Run],
    threads: int,
    seconds: float,
    repetitions: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Median milliseconds of each precision, and of ``onnxruntime_fp32``, ``_int8`` and ``_exact`` where installed."""
    names, runs = list(kernels), list(kernels.values())
    if onnx_runtime.is_available():
        for name, found in baselines_of(case, op, threads, rng).items():
            names += [f"onnxruntime_{name}"] * len(found)
            runs += found
        names.append("overhead")
        runs.append(onnx_baseline.overhead(threads))
    medians = [float(np.median(samples)) for samples in interleave(runs, seconds, repetitions, rng)]
    overhead = medians.pop() if names[-1] == "overhead" else 0.0
    times: dict[str, float] = {}
    for name, median in zip(names, medians, strict=False):
        median = max(median - overhead, 1e-6) if name.startswith("onnxruntime") else median
        times[name] = min(median, times.get(name, math.inf))
    return times


def baselines_of(case: KernelCase, op: Op, threads: int, rng: np.random.Generator) -> Mapping[str, list[Any]]:
    """ONNX Runtime sessions for an operation: a 1x1 convolution is one there too."""
    return onnx_baseline.baselines(case, rng, threads=threads, as_conv=op.kind is OpKind.CONV)


def _has_kernel(op: str, precision: str) -> bool:
    if op == KernelOp.DEPTHWISE:
        return precision in (FP32, "w8a8", CODES)
    if op == KernelOp.MATMUL:
        return precision in (FP32, "w8a8", "w4a4")
    return True


def _entry(
    case: KernelCase,
    model: str,
    op: Op,
    precision: str,
    run: Run,
    threads: int,
    isa: str,
    times: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "op": case.op,
        "model": model,
        "layer": op.name,
        "shape": list(case.shape),
        "precision": precision,
        "instructions": run.packed.instructions if isinstance(run, PackedRun) else None,
        "threads": threads,
        "isa": isa,
        "ms": times[precision],
        "gmacs_per_s": case.macs / times[precision] / 1e6,
        "onnxruntime_fp32_ms": times.get("onnxruntime_fp32"),
        "onnxruntime_int8_ms": times.get("onnxruntime_int8"),
        "onnxruntime_exact_ms": times.get("onnxruntime_exact"),
    }


def summarize(cases: Sequence[Mapping[str, Any]], best: Mapping[str, float]) -> dict[str, Any]:
    """Geometric means of the ratios that matter; above 1 means that the kernels are faster.

    Args:
        cases: Entries as ``bench_kernels`` makes them.
        best: Peaks in GMAC/s by instructions; see ``peaks``.

    Returns:
        For ``gemm`` (with convolutions), ``depthwise`` and ``matmul``: for each precision the number of shapes and its
        speed relative to ONNX Runtime FP32 and INT8 and to our FP32 and W8A8; for ``gemm`` also the share of the
        peak of all threads for reductions of at least 192.
    """
    kinds = {"gemm": ("gemm", "conv"), "depthwise": ("depthwise",), "matmul": ("matmul",)}
    return {kind: _summary_of([case for case in cases if case["op"] in ops], best) for kind, ops in kinds.items()}


def _summary_of(cases: Sequence[Mapping[str, Any]], best: Mapping[str, float]) -> dict[str, Any]:
    ours = {(case["op"], tuple(case["shape"]), case["precision"]): case["ms"] for case in cases}
    result: dict[str, Any] = {}
    for precision in dict.fromkeys(case["precision"] for case in cases):
        chosen = [case for case in cases if case["precision"] == precision]
        entry: dict[str, Any] = {"shapes": len(chosen)}
        for name in ("onnxruntime_fp32_ms", "onnxruntime_int8_ms", "onnxruntime_exact_ms"):
            entry[f"times_{name[:-3]}"] = _mean([case[name] / case["ms"] for case in chosen if case.get(name)])
        for other in (FP32, "w8a8"):
            ratios = [ours[case["op"], tuple(case["shape"]), other] / case["ms"] for case in chosen
                      if (case["op"], tuple(case["shape"]), other) in ours]  # fmt: skip
            entry[f"times_{other}"] = _mean(ratios)
        large = [
            case["gmacs_per_s"] / (best[case["instructions"]] * case["threads"])
            for case in chosen
            if case["instructions"] and _reduction(case) >= LARGE_K
        ]
        entry["share_of_peak"] = _mean(large)
        result[precision] = entry
    return result


def _reduction(case: Mapping[str, Any]) -> int:
    shape = case["shape"]
    if case["op"] == KernelOp.GEMM:
        return int(shape[2])
    return int(shape[2] * shape[4] * shape[5] // shape[-1]) if case["op"] == KernelOp.CONV else 0


def _mean(ratios: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
