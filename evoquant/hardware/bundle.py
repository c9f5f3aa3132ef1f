"""A folder that measures single operations on any device with ONNX Runtime, without evoquant.

Each distinct case becomes an ONNX model of one operation, weights of random codes inside. ``run.py`` of the folder
times them with nothing but onnxruntime and writes a latency table in the published format, which ``read_table`` reads.
ONNX Runtime multiplies bytes or floats, so every quantized case is a model of 8-bit codes, and cases that differ only
below 8 bits share one model; a device that computes in 4 bits needs a table from its own tool. Where a device takes
activations without zero points only (TensorRT, the Neural Engine), they are signed bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from evoquant.errors import HardwareError
from evoquant.hardware.attention import product_and_function
from evoquant.hardware.device import Device
from evoquant.hardware.measured import Kernels, float_work, op_cases
from evoquant.hardware.onnx_models import one_op_model, tensor_model
from evoquant.hardware.table import Case, key_of
from evoquant.types.graph import ModelGraph, Op
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig


@dataclass(frozen=True, slots=True)
class BundleItem:
    """One case to time.

    Attributes:
        case: Its name in the table.
        op: An operation that stands for it; None for a kernel on tensors.
        is_quantized: Whether it is executed on codes.
        is_symmetric: Whether its activations have no zero point.
    """

    case: Case
    op: Op | None = None
    is_quantized: bool = False
    is_symmetric: bool = False


def bundle_items(
    graph: ModelGraph, choices: Mapping[str, Iterable[LayerQuantConfig]], device: Device, kernels: Kernels
) -> Iterator[BundleItem]:
    """The cases of ``reachable_cases``, each with what its model is made from.

    Raises:
        HardwareError: If a configuration has no legal form or no kernel.
    """
    for op, config, case in op_cases(graph, choices, device, kernels):
        is_quantized = FLOAT_BITS not in (config.weight_bits, config.activation_bits)
        yield BundleItem(case, op, is_quantized, is_quantized and config.use_symmetric)
    for case in float_work(graph, kernels, device.fused).cases:
        yield BundleItem(case)


def write_bundle(folder: Path, items: Iterable[BundleItem]) -> int:
    """Write the models, ``manifest.json``, ``run.py`` and ``README.md``.

    Args:
        folder: Made if it does not exist; must be empty otherwise.
        items: Cases; of equal ones the first is taken.

    Returns:
        Number of models written.

    Raises:
        HardwareError: If the folder holds files, a case has no model, or the package ``onnx`` is missing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise HardwareError(f"{folder}: The folder of a bundle must be empty or new.")
    unique = {key_of(item.case): item for item in reversed(list(items))}
    (folder / "models").mkdir(parents=True)
    files: dict[tuple[object, ...], str] = {}
    entries: list[dict[str, object]] = []
    for key, item in sorted(unique.items()):
        signature = (key.op, key.shape, item.is_quantized, item.is_symmetric)
        if signature not in files:
            kind = "int8" if item.is_quantized else "float"
            files[signature] = f"models/{len(files):04d}_{key.op.replace('+', '_')}_{kind}.onnx"
            (folder / files[signature]).write_bytes(_model(item))
        entries.append({"op": key.op, "shape": list(key.shape), "precision": key.precision, "model": files[signature]})
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "entries": entries}, indent=1) + "\n")
    templates = resources.files("evoquant.hardware") / "bundle_files"
    for source, name in (("run.py.txt", "run.py"), ("README.md", "README.md")):
        (folder / name).write_text((templates / source).read_text(encoding="utf-8"), encoding="utf-8")
    return len(files)


def _model(item: BundleItem) -> bytes:
    op, activation = product_and_function(item.case.op)
    if item.op is None:
        return tensor_model(op, item.case.shape)
    return one_op_model(item.op, quantized=item.is_quantized, symmetric=item.is_symmetric, activation=activation)
