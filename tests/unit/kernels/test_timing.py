"""Timing, the report about the machine, and the benchmark, all briefly."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from evoquant.errors import KernelError
from evoquant.kernels import KernelCase, conversion_case, fingerprint, float_case, info, measure
from evoquant.kernels.bench import bench_kernels, summarize
from evoquant.kernels.timing import CASES_IN_TURN, MOST_PASSES, in_turn, interleave, timing
from evoquant.kernels.workload import workload
from evoquant.types import ConvGeometry, Op, OpKind, Role

needs_native = pytest.mark.skipif(not info().available, reason="the native kernels are not built")

CASES = [
    KernelCase("gemm", (8, 20, 12), precision)
    for precision in (
        "fp32",
        "w8a8",
        "w5a7",
        "w4a8-log2",
        "w4a8-normal",
        "w6a6-lloyd",
        "w2a8-ternary",
        "w1a8-binary",
        "w16a16",
        "w4a8-g4",
    )
] + [
    KernelCase("conv", (6, 6, 4, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1), "w4a8"),
    KernelCase("conv+silu", (6, 6, 4, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1), "fp32"),
    KernelCase("depthwise", (6, 6, 8, 3, 3, 1, 1, 1, 1, 1, 1), "w8a8"),
    KernelCase("depthwise", (6, 6, 8, 3, 3, 1, 1, 1, 1, 1, 1), "w16a16"),
    KernelCase("matmul", (2, 5, 6, 7, 1), "w8a8"),
    KernelCase("matmul", (2, 5, 6, 7, 0), "w4a4-loga"),
    *(float_case(kind, 60, columns=6) for kind in ("softmax", "layer_norm", "group_norm", "mean")),
    *(float_case(kind, 60) for kind in ("add", "mul", "relu", "silu", "gelu", "sigmoid", "hardswish", "copy")),
    conversion_case(60, to_codes=True),
    conversion_case(60, to_codes=False),
]


@needs_native
def test_every_kind_of_case_can_be_timed():
    timings = measure(CASES, seconds_per_case=1e-4, repetitions=3, passes=2)
    assert [timing.case for timing in timings] == CASES
    for one in timings:
        assert len(one.samples) == 6
        assert min(one.samples) <= one.median_ms <= max(one.samples)
        assert one.median_ms > 0
        assert one.iqr_ms >= 0


@needs_native
def test_more_work_takes_longer():
    small, large = measure(
        [KernelCase("gemm", (16, 64, 64), "w8a8"), KernelCase("gemm", (512, 512, 256), "w8a8")],
        seconds_per_case=0.01, repetitions=5,
    )  # fmt: skip
    assert large.median_ms > 10 * small.median_ms


@needs_native
def test_wrong_cases_are_errors():
    with pytest.raises(KernelError, match="Expected a precision such as"):
        measure([KernelCase("gemm", (1, 1, 1), "int8")])
    with pytest.raises(KernelError, match="positive threads"):
        measure([], threads=0)
    with pytest.raises(KernelError, match="Unknown activation"):
        measure([KernelCase("gemm+tanh", (1, 1, 1))])


def test_rounds_are_interleaved_and_statistics_are_those_of_the_samples():
    order = []

    def run(name):
        def call(repeats):
            order.append((name, repeats))
            return 1e-3 * repeats

        return call

    samples = interleave([run("a"), run("b")], 8e-3, 4, np.random.default_rng(0))
    warm, timed = order[-16::2], order[-15::2]
    assert [name for name, _ in warm] == [name for name, _ in timed]
    assert {repeats for _, repeats in warm} == {2}
    assert {repeats for _, repeats in timed} == {8}
    assert [{timed[at][0], timed[at + 1][0]} for at in range(0, 8, 2)] == [{"a", "b"}] * 4
    assert np.allclose(samples, 1.0)
    slow_then_fast = timing(CASES[0], [[5.0, 4.0, 6.0], [1.0, 3.0, 2.0]])
    assert slow_then_fast.median_ms == 2.0
    assert slow_then_fast.iqr_ms == 2.5


@needs_native
def test_kernels_run_in_turn():
    order = []

    def run(index):
        def call(repeats):
            order.append(index)
            return 1e-3 * (index + 1) * repeats

        return call

    count = CASES_IN_TURN + 3
    times = in_turn([run(index) for index in range(count)], np.random.default_rng(0))
    assert np.allclose(times, np.arange(1, count + 1))
    assert [order.count(index) for index in range(count)] == [MOST_PASSES + 1] * count
    assert all(one != next_ for one, next_ in pairwise(order))
    assert set(order[:CASES_IN_TURN]).isdisjoint(order[-3:])
    order.clear()
    in_turn([run(0), run(1)], np.random.default_rng(0), seconds=3e-3)
    assert order.count(0) == order.count(1) == 1 + 2


@needs_native
def test_the_fingerprint_is_json():
    print_ = json.loads(json.dumps(fingerprint(threads=2)))
    assert print_["threads"] == 2
    assert print_["isa"] == info().used
    assert print_["cpu"]


def kernels_info(environment):
    code = "from evoquant.kernels import info; print(info().used)"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@needs_native
def test_the_environment_caps_the_instruction_set():
    assert kernels_info({"EVOQUANT_ISA": "reference"}).stdout.strip() == "reference"
    wrong = kernels_info({"EVOQUANT_ISA": "mmx"})
    assert "EVOQUANT_ISA='mmx' is not the name of an instruction set" in wrong.stderr


def test_a_missing_module_is_reported(monkeypatch):
    from evoquant.kernels import native

    monkeypatch.setattr(native, "_load", lambda: (None, "the native module is missing."))
    assert not native.info().available
    assert native.info().reason == "the native module is missing."
    with pytest.raises(KernelError, match="missing"):
        measure([float_case("add", 4)])


def layers():
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 8)
    depthwise = Op(
        "dw", OpKind.CONV, Role.DEPTHWISE, "b", "conv", "g", "n", ("x",), (1, 8, 6, 6), (8, 1, 3, 3), (1, 8, 6, 6),
        geometry, (8, 36, 1, 9), 36 * 72, 72, False, (), (),
    )  # fmt: skip
    linear = Op(
        "fc", OpKind.LINEAR, Role.HEAD, "b", "head", "g", "n", ("x",), (5, 12), (16, 12), (5, 16), None,
        (1, 5, 16, 12), 5 * 16 * 12, 192, True, (), (),
    )  # fmt: skip
    matmul = Op(
        "qk", OpKind.MATMUL, Role.ATTENTION_QK, "b", "transformer", "g", "n", ("x", "y"), (2, 5, 8), (2, 8, 5),
        (2, 5, 5), None, (2, 5, 5, 8), 400, 0, False, (), (),
    )  # fmt: skip
    return [("tiny", depthwise), ("tiny", linear), ("tiny", matmul), ("lloyd", linear)]


@needs_native
@pytest.mark.slow
def test_the_benchmark_runs():
    result = json.loads(json.dumps(bench_kernels(layers(), seconds_per_case=1e-4, repetitions=2)))
    assert set(result) == {"machine", "onnxruntime_isa", "peaks", "cases", "summary"}
    shapes = {(case["op"], case["precision"]) for case in result["cases"]}
    assert {("gemm", "w4a8"), ("depthwise", "w8a8"), ("matmul", "w4a4")} <= shapes
    assert sum(case["op"] == "gemm" and case["precision"] == "w8a8" for case in result["cases"]) == 1
    assert all(case["ms"] > 0 for case in result["cases"])


def test_the_summary_is_geometric():
    base = {"op": "gemm", "model": "m", "layer": "l", "shape": [4, 4, 256], "threads": 1, "isa": "avx2",
            "gmacs_per_s": 10.0, "onnxruntime_int8_ms": None, "instructions": "u8s8/4"}  # fmt: skip
    cases = [
        {**base, "precision": "fp32", "ms": 4.0, "onnxruntime_fp32_ms": 8.0},
        {**base, "precision": "w8a8", "ms": 2.0, "onnxruntime_fp32_ms": 8.0},
        {**base, "precision": "w8a8", "shape": [4, 4, 8], "ms": 8.0, "onnxruntime_fp32_ms": 8.0},
    ]
    summary = summarize(cases, {"u8s8/4": 40.0})["gemm"]["w8a8"]
    assert summary["shapes"] == 2
    assert summary["times_onnxruntime_fp32"] == pytest.approx(2.0)
    assert summary["times_fp32"] == pytest.approx(2.0)
    assert summary["times_onnxruntime_int8"] is None
    assert summary["share_of_peak"] == pytest.approx(0.25)


@needs_native
@pytest.mark.parametrize("case", [("gemm", (5, 17, 12)), ("depthwise", (6, 6, 17, 3, 3, 1, 1, 1, 1, 1, 1))])
@pytest.mark.parametrize("precision", ["w8a8", "w8a4-lloyd"])
@pytest.mark.parametrize("ends", ["", "-u8in", "-u8out", "-lloydout", "-u8in-lloydout"])
def test_products_between_codes_of_both_kinds_are_timed(case, precision, ends):
    run = workload(KernelCase(*case, precision + ends), np.random.default_rng(0))
    assert run(2) > 0.0
