"""One operation in ONNX Runtime, in float32 and in 8 bits, to compare the kernels with in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import KernelError
from evoquant.kernels.case import KernelCase, KernelOp

Run = Callable[[int], float]

_OPSET = 17
_IR_VERSION = 8


def baselines(case: KernelCase, rng: np.random.Generator, *, threads: int, as_conv: bool) -> dict[str, list[Run]]:
    """What ONNX Runtime offers for a case; the fastest of a list is its time.

    ``fp32``: the operation with and without the layout optimizer. ``int8``: MatMulInteger and QLinearMatMul, or
    QLinearConv; they take codes and give codes or accumulators, so quantizing the input is not part of their time. On
    AVX2 they add products of u8 and s8 in 16 bits that saturate. ``exact``: the same with weights as u8, which do not.

    Args:
        case: A GEMM, convolution, depthwise convolution or matmul.
        rng: Of the operands.
        threads: Threads of the session.
        as_conv: Whether a GEMM stands for a 1x1 convolution.

    Raises:
        KernelError: If the case is something else.
    """
    if case.op in (KernelOp.CONV, KernelOp.DEPTHWISE) or (case.op == KernelOp.GEMM and as_conv):
        return _conv(case, rng, threads)
    if case.op == KernelOp.GEMM:
        m, n, k = case.shape
        return _matmul((m, k), (k, n), rng, threads, constant=True)
    if case.op == KernelOp.MATMUL:
        batch, m, n, k, _ = case.shape
        return _matmul((batch, m, k), (batch, k, n), rng, threads, constant=False)
    raise KernelError(f"ONNX Runtime baselines are for products, but got '{case.op}'.")


def overhead(threads: int) -> Run:
    """A session that does nothing: what calling one costs."""
    import onnx

    x = np.zeros((1,), np.float32)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    return _session([node], {"x": x}, {}, (1,), np.float32, threads)


def session_options(threads: int) -> Any:  # noqa: ANN401 - onnxruntime is optional
    """Options of a session with so many threads, which wait asleep between its runs: others are timed meanwhile."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _conv_geometry(case: KernelCase) -> tuple[tuple[int, int], int, int, dict[str, Any]]:
    if case.op == KernelOp.GEMM:
        pixels, n, k = case.shape
        height = next(size for size in range(int(pixels**0.5), 0, -1) if pixels % size == 0)
        return (height, pixels // height), k, n, {"kernel_shape": (1, 1), "group": 1}
    height, width, channels = case.shape[:3]
    depthwise = case.op == KernelOp.DEPTHWISE
    kh, kw, sh, sw, ph, pw, dh, dw = case.shape[3:] if depthwise else case.shape[4:-1]
    attributes = {
        "kernel_shape": (kh, kw), "strides": (sh, sw), "pads": (ph, pw, ph, pw), "dilations": (dh, dw),
        "group": channels if depthwise else case.shape[-1],
    }  # fmt: skip
    return (height, width), channels, channels if depthwise else case.shape[3], attributes


def _conv(case: KernelCase, rng: np.random.Generator, threads: int) -> dict[str, list[Run]]:
    import onnx

    size, channels, out_channels, attributes = _conv_geometry(case)
    kernel = (out_channels, channels // attributes["group"], *attributes["kernel_shape"])
    make = onnx.helper.make_node
    x = rng.standard_normal((1, channels, *size), np.float32)
    weights = {"w": rng.standard_normal(kernel, np.float32), "b": rng.standard_normal(out_channels, np.float32)}
    node = make("Conv", ["x", "w", "b"], ["y"], **attributes)
    floats = [_session([node], {"x": x}, weights, None, np.float32, threads, level=level) for level in ("all", "basic")]
    weight_codes = rng.integers(-127, 128, kernel, np.int8)
    codes = {
        "w": weight_codes, "b": rng.integers(-99, 99, out_channels, np.int32),
        "xs": np.float32(0.02), "xz": np.uint8(128), "ws": np.full(out_channels, 0.01, np.float32),
        "wz": np.zeros(out_channels, np.int8), "ys": np.float32(0.1), "yz": np.uint8(128),
    }  # fmt: skip
    quantized = make("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], **attributes)
    x8 = rng.integers(0, 255, x.shape, np.uint8)
    unsigned = {"w": _as_unsigned(weight_codes), "wz": np.full(out_channels, 128, np.uint8)}
    return {
        "fp32": floats,
        "int8": [_session([quantized], {"x": x8}, codes, None, np.uint8, threads)],
        "exact": [_session([quantized], {"x": x8}, codes | unsigned, None, np.uint8, threads)],
    }


def _as_unsigned(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The same numbers, counted from -128."""
    return (codes.astype(np.int16) + 128).astype(np.uint8)


def _matmul(
    left: tuple[int, ...], right: tuple[int, ...], rng: np.random.Generator, threads: int, *, constant: bool
) -> dict[str, list[Run]]:
    import onnx

    make = onnx.helper.make_node
    a, b = rng.standard_normal(left, np.float32), rng.standard_normal(right, np.float32)
    a8, b8 = rng.integers(0, 255, left, np.uint8), rng.integers(-127, 127, right, np.int8)
    out = (*left[:-1], right[-1])
    nodes = [make("MatMul", ["a", "b"], ["y" if not constant else "p"])]
    bias = {}
    if constant:
        nodes.append(make("Add", ["p", "c"], ["y"]))
        bias = {"c": rng.standard_normal(right[-1], np.float32)}
    fp32 = _session(nodes, *_split({"a": a}, {"b": b}, constant, bias), out, np.float32, threads)
    integer = make("MatMulInteger", ["a", "b", "az"], ["y"])
    scales = {
        "as": np.float32(0.02), "az": np.uint8(128), "bs": np.float32(0.01), "bz": np.int8(0),
        "ys": np.float32(0.1), "yz": np.uint8(128),
    }  # fmt: skip
    linear = make("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    operands = ({"a": a8}, {"b": b8}, constant)
    int8 = [
        _session([integer], *_split(*operands, {"az": np.uint8(128)}), out, np.int32, threads),
        _session([linear], *_split(*operands, scales), out, np.uint8, threads),
    ]
    shifted = make("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    zeros = {"az": np.uint8(128), "bz": np.uint8(128)}
    exact = _session([shifted], *_split({"a": a8}, {"b": _as_unsigned(b8)}, constant, zeros), out, np.int32, threads)
    return {"fp32": [fp32], "int8": int8, "exact": [exact]}


def _split(
    a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]], constant: bool, more: dict[str, Any]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    return (a, b | more) if constant else (a | b, more)


def _session(
    nodes: list[Any],
    inputs: dict[str, NDArray[Any]],
    constants: dict[str, Any],
    out_shape: tuple[int, ...] | None,
    out_type: type,
    threads: int,
    *,
    level: str = "all",
) -> Run:
    import onnx
    import onnxruntime as ort

    element = onnx.helper.np_dtype_to_tensor_dtype
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "case",
        [value(name, element(array.dtype), array.shape) for name, array in inputs.items()],
        [value("y", element(np.dtype(out_type)), out_shape)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    options = session_options(threads)
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if level == "all" else levels.ORT_ENABLE_BASIC
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    kept = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    for name, array in kept.items():
        binding.bind_ortvalue_input(name, array)
    binding.bind_output("y")

    clock = time.thread_time if threads == 1 else time.perf_counter

    def run(repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            session.run_with_iobinding(binding)
        return clock() - start

    return run
