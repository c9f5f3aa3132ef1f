"""The same model in ONNX Runtime, in float32 and in 8 bits, to compare packed models with in the same run."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evoquant.errors import GraphError
from evoquant.kernels import onnx_runtime
from evoquant.kernels.onnx_baseline import session_options

Run = Callable[[int], float]
OPSET = 17
EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError, AttributeError)


def exported(model: nn.Module, image: Tensor) -> bytes:
    """The model as ONNX for one image, by the tracing exporter of torch.

    Raises:
        GraphError: If it cannot be exported; the message has the reason.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet(), torch.no_grad():
            target = Path(folder) / "model.onnx"
            torch.onnx.export(
                model, (image,), str(target), opset_version=OPSET, input_names=["x"], output_names=["y"], dynamo=False
            )
            return target.read_bytes()
    except EXPORT_ERRORS as error:
        raise GraphError(f"torch.onnx cannot export the model: {str(error).splitlines()[0]}") from error


def quantized(model: bytes, images: Sequence[Tensor]) -> dict[str, bytes]:
    """The model in 8 bits, in each of the ways that ONNX Runtime's own quantizer offers.

    ``qdq_u8s8``: static, activations in u8, weights in s8 per channel. ``qdq_s8s8``: the same with activations in s8.
    ``dynamic``: matrix products with activations quantized at run time.

    Args:
        model: What ``exported`` gave.
        images: Calibration images, each of the exported shape.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (str(Path(folder) / name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        Path(source).write_bytes(model)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        for name, kind in (("qdq_u8s8", QuantType.QUInt8), ("qdq_s8s8", QuantType.QInt8)):
            reader = _Images([image.numpy() for image in images])
            quantize_static(
                prepared, target, reader, per_channel=True, activation_type=kind, weight_type=QuantType.QInt8
            )
            made[name] = Path(target).read_bytes()
        quantize_dynamic(prepared, target, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
        made["dynamic"] = Path(target).read_bytes()
    return made


def timer(model: bytes, image: Tensor, *, threads: int) -> Run:
    """A function that runs a model so often and returns the seconds it took; input and output stay bound."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(image.numpy())
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y")

    def run(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            session.run_with_iobinding(binding)
        return time.perf_counter() - start

    return run


def timers(model: nn.Module, images: Sequence[Tensor], *, threads: int) -> tuple[dict[str, Run], dict[str, str]]:
    """Timers of all variants by name, and by name why others are missing."""
    if not onnx_runtime.is_available():
        return {}, {"onnxruntime": "onnx and onnxruntime are not installed (pip install 'evoquant[deploy]')"}
    try:
        original = exported(model, images[0])
    except GraphError as error:
        return {}, {"onnxruntime": str(error)}
    runs = {"onnxruntime_fp32": timer(original, images[0], threads=threads)}
    for name, made in quantized(original, images).items():
        runs[f"onnxruntime_int8_{name}"] = timer(made, images[0], threads=threads)
    return runs, {}


class _Images:
    """What ONNX Runtime's calibration reads."""

    def __init__(self, images: Sequence[NDArray[np.float32]]) -> None:
        self._waiting: Iterator[NDArray[np.float32]] = iter(images)

    def get_next(self) -> Mapping[str, Any] | None:
        """The next input by name, None at the end."""
        image = next(self._waiting, None)
        return None if image is None else {"x": image}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and the quantizer's log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
