import json
import subprocess
import sys
from dataclasses import dataclass
from math import erf

import numpy as np
import pytest

from evoquant import kernels
from evoquant.errors import HardwareError
from evoquant.hardware import load_device
from evoquant.hardware.bundle import BundleItem, bundle_items, write_bundle
from evoquant.hardware.onnx_models import one_op_model, tensor_model
from evoquant.hardware.table import read_table
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

onnx = pytest.importorskip("onnx", reason="needs the extra 'deploy'")
ort = pytest.importorskip("onnxruntime", reason="needs the extra 'deploy'")


@dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, ...]
    precision: str


def items(graph, *, is_symmetric=False):
    return [
        BundleItem(Case(op.kind.value, op.gemm, config.label), op, config is not FLOAT, is_symmetric)
        for op in graph.ops
        for config in (FLOAT, LayerQuantConfig(), LayerQuantConfig(weight_bits=4))
    ]


@pytest.mark.parametrize("name", ["stem", "blocks.0.dw", "blocks.0.expand", "attn.q", "attn.qk", "head"])
@pytest.mark.parametrize(
    ("quantized", "symmetric", "dtype"), [(True, False, np.uint8), (True, True, np.int8), (False, False, np.float32)]
)
def test_a_model_gives_the_shape_of_the_operation(hybrid, name, quantized, symmetric, dtype):
    op = hybrid.op[name]
    model = one_op_model(op, quantized=quantized, symmetric=symmetric)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {value.name: np.full(value.shape, 120, dtype) for value in session.get_inputs()}
    (out,) = session.run(None, feed)
    assert out.shape == op.output_shape
    assert out.dtype == dtype


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


TENSOR_KERNELS = {
    "add": lambda x: x + x,
    "copy": lambda x: x,
    "gelu": gelu,
    "group_norm": lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "layer_norm": layer_norm,
    "mean": lambda x: x.mean(axis=0),
    "mul": lambda x: x * x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": softmax,
}


@pytest.mark.parametrize("kernel", TENSOR_KERNELS)
def test_the_model_of_a_tensor_kernel_computes_it(kernel):
    x = np.linspace(-9, 9, 24).reshape(4, 6)
    session = ort.InferenceSession(tensor_model(kernel, x.shape), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {value.name: x.astype(np.float32) for value in session.get_inputs()})
    np.testing.assert_allclose(out, TENSOR_KERNELS[kernel](x), atol=1e-5)


def test_an_unknown_tensor_kernel_is_named():
    with pytest.raises(HardwareError, match=r"No ONNX model for the kernel 'soft_max'\. Available: add, copy"):
        tensor_model("soft_max", (2, 2))


def test_an_activation_is_part_of_the_model(builder):
    b = builder((2, 3))
    b.linear("fc", "image", 4)
    op = b.build().ops[0]
    plain, fused = (
        ort.InferenceSession(one_op_model(op, quantized=False, activation=name), providers=["CPUExecutionProvider"])
        for name in ("", "relu")
    )
    feed = {"x": np.array([[1, 2, -3], [-4, 5, 6]], np.float32)}
    np.testing.assert_array_equal(fused.run(None, feed)[0], np.maximum(plain.run(None, feed)[0], 0))


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_the_runner_needs_no_evoquant_and_its_table_is_read(hybrid, tmp_path, is_symmetric):
    folder = tmp_path / "bundle"
    wanted = items(hybrid, is_symmetric=is_symmetric)
    count = write_bundle(folder, wanted)
    assert count == len(list((folder / "models").iterdir())) < len(wanted)
    command = [sys.executable, "-I", "run.py", "--repetitions", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    table = read_table(folder / "table.json")
    assert done.stdout == f"{len(table.entries)} entries in table.json\n"
    assert "evoquant" not in (folder / "run.py").read_text().split('"""', 2)[2]
    for item in wanted:
        assert table[item.case].median_ms > 0
    assert table.threads == 1
    assert table.machine["runtime"] == f"onnxruntime {ort.__version__}"


def test_widths_below_8_share_the_model_of_8(hybrid, tmp_path):
    write_bundle(tmp_path / "bundle", items(hybrid))
    entries = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["entries"]
    models = {(entry["op"], tuple(entry["shape"]), entry["precision"]): entry["model"] for entry in entries}
    for (op, shape, precision), model in models.items():
        if precision == "W4A8":
            assert model == models[op, shape, "W8A8"] != models[op, shape, "FP32"]


@pytest.mark.parametrize(("device", "is_symmetric"), [("nvidia_t4", True), ("raspberry_pi_5", False)])
def test_codes_have_the_zero_points_that_the_device_takes(hybrid, device, is_symmetric):
    choices = {op.name: [LayerQuantConfig(), FLOAT] for op in hybrid.ops}
    found = list(bundle_items(hybrid, choices, load_device(device), kernels))
    assert {item.is_symmetric for item in found if item.is_quantized} == {is_symmetric}
    assert not any(item.is_symmetric for item in found if not item.is_quantized)


def test_a_folder_with_files_is_left_alone(hybrid, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(HardwareError, match="must be empty or new"):
        write_bundle(tmp_path, items(hybrid))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
