"""ONNX models of one operation each, with random weights from a fixed seed, as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evoquant.errors import HardwareError
from evoquant.types.graph import Op, OpKind

OPSET = 17
_IR_VERSION = 8
_SCALE = 0.02
_UNSIGNED_ZERO_POINT = 128


def one_op_model(op: Op, *, quantized: bool, symmetric: bool = False, activation: str = "") -> bytes:
    """A convolution, linear layer or matmul at batch size 1.

    Args:
        op: The operation.
        quantized: 8-bit codes in and out (QDQ form: unsigned activations, signed weights per channel), else FP32.
        symmetric: Signed activations without a zero point, which is all that some runtimes execute.
        activation: Name of the kernel applied to the result: ``relu``, ``silu``, ``gelu``, ...; empty for none.

    Raises:
        HardwareError: If the package ``onnx`` is missing.
    """
    maker = _Maker(quantized, symmetric)
    inputs = [maker.input("x", op.input_shape)]
    if op.kind is OpKind.MATMUL:
        inputs.append(maker.input("y", op.weight_shape))
    else:
        inputs.append(maker.weight(op.weight_shape, transposed=op.kind is OpKind.LINEAR))
    attributes: dict[str, Any] = {}
    if op.geometry is not None:
        g = op.geometry
        attributes = {
            "kernel_shape": g.kernel,
            "strides": g.stride,
            "pads": (*g.padding, *g.padding),
            "dilations": g.dilation,
            "group": g.groups,
        }
    result = maker.node("Conv" if attributes else "MatMul", inputs, **attributes)
    return maker.model(_TENSOR_OPS[activation](maker, [result]) if activation else result, op.output_shape)


def tensor_model(kernel: str, shape: Sequence[int]) -> bytes:
    """An operation on tensors in FP32, such as ``softmax`` of (rows, columns) or ``add`` of (elements,).

    Raises:
        HardwareError: If there is no such operation, or the package ``onnx`` is missing.
    """
    if kernel not in _TENSOR_OPS:
        raise HardwareError(f"No ONNX model for the kernel '{kernel}'. Available: {', '.join(sorted(_TENSOR_OPS))}.")
    maker = _Maker(quantized=False)
    inputs = [maker.input(name, shape) for name in (("x", "y") if kernel in ("add", "mul") else ("x",))]
    return maker.model(_TENSOR_OPS[kernel](maker, inputs), shape[1:] if kernel == "mean" else shape)


class _Maker:
    """Collects the parts of a graph; with ``quantized``, tensors are codes with quantize and dequantize around."""

    def __init__(self, quantized: bool, symmetric: bool = False) -> None:
        try:
            import onnx
        except ImportError as error:
            raise HardwareError(
                "Writing ONNX models needs the package onnx: pip install 'evoquant[deploy]'."
            ) from error
        self.helper: Any = onnx.helper
        self.types: Any = onnx.TensorProto
        self.quantized = quantized
        self.codes: int = self.types.INT8 if symmetric else self.types.UINT8
        self.random = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.constants: list[Any] = []
        if quantized:
            self.constant("scale", np.array(_SCALE, np.float32))
            zero = np.array(0, np.int8) if symmetric else np.array(_UNSIGNED_ZERO_POINT, np.uint8)
            self.constant("zero", zero)

    def input(self, name: str, shape: Sequence[int]) -> str:
        kind = self.codes if self.quantized else self.types.FLOAT
        self.inputs.append(self.helper.make_tensor_value_info(name, kind, shape))
        return self.node("DequantizeLinear", [name, "scale", "zero"]) if self.quantized else name

    def weight(self, shape: Sequence[int], *, transposed: bool) -> str:
        codes = self.random.integers(-127, 128, shape).astype(np.int8)
        if transposed:
            codes = np.ascontiguousarray(codes.T)
        if not self.quantized:
            return self.constant("w", codes.astype(np.float32) * _SCALE)
        parts = [
            self.constant("w", codes),
            self.constant("w_scale", np.full(shape[0], _SCALE, np.float32)),
            self.constant("w_zero", np.zeros(shape[0], np.int8)),
        ]
        return self.node("DequantizeLinear", parts, axis=codes.ndim - 1 if transposed else 0)

    def node(self, kind: str, inputs: Sequence[str], **attributes: object) -> str:
        made = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [made], **attributes))
        return made

    def constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        kind = self.helper.np_dtype_to_tensor_dtype(values.dtype)
        self.constants.append(self.helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True))
        return name

    def model(self, result: str, shape: Sequence[int]) -> bytes:
        kind = self.types.FLOAT
        if self.quantized:
            scale = self.constant("out_scale", np.array(10 * _SCALE, np.float32))
            result, kind = self.node("QuantizeLinear", [result, scale, "zero"]), self.codes
        outputs = [self.helper.make_tensor_value_info(result, kind, shape)]
        graph = self.helper.make_graph(self.nodes, "one_operation", self.inputs, outputs, self.constants)
        opset = self.helper.make_opsetid("", OPSET)
        model = self.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())


def _silu(maker: _Maker, inputs: Sequence[str]) -> str:
    return maker.node("Mul", [inputs[0], maker.node("Sigmoid", inputs)])


def _gelu(maker: _Maker, inputs: Sequence[str]) -> str:
    half, one, root = (
        maker.constant(name, np.array(value, np.float32))
        for name, value in (("half", 0.5), ("one", 1.0), ("root", 0.5**0.5))
    )
    error = maker.node("Erf", [maker.node("Mul", [inputs[0], root])])
    return maker.node("Mul", [maker.node("Mul", [inputs[0], half]), maker.node("Add", [error, one])])


def _relu6(maker: _Maker, inputs: Sequence[str]) -> str:
    bounds = [maker.constant(name, np.array(value, np.float32)) for name, value in (("low", 0.0), ("high", 6.0))]
    return maker.node("Clip", [inputs[0], *bounds])


def _layer_norm(maker: _Maker, inputs: Sequence[str]) -> str:
    size = maker.inputs[0].type.tensor_type.shape.dim[-1].dim_value
    return maker.node("LayerNormalization", [inputs[0], maker.constant("gain", np.ones(size, np.float32))], axis=-1)


def _group_norm(maker: _Maker, inputs: Sequence[str]) -> str:
    """One group, as PyTorch exports it: an instance of one channel, then weight and bias of each column."""
    shape = [axis.dim_value for axis in maker.inputs[0].type.tensor_type.shape.dim]
    one, zero = (maker.constant(name, np.array([value], np.float32)) for name, value in (("unit", 1), ("none", 0)))
    flat = maker.node("Reshape", [inputs[0], maker.constant("flat", np.array([1, 1, -1]))])
    normal = maker.node("InstanceNormalization", [flat, one, zero])
    rows = maker.node("Reshape", [normal, maker.constant("rows", np.array(shape))])
    scaled = maker.node("Mul", [rows, maker.constant("gain", np.ones(shape[-1], np.float32))])
    return maker.node("Add", [scaled, maker.constant("shift", np.zeros(shape[-1], np.float32))])


def _plain(kind: str, **attributes: object) -> Callable[[_Maker, Sequence[str]], str]:
    return lambda maker, inputs: maker.node(kind, inputs, **attributes)


_TENSOR_OPS: dict[str, Callable[[_Maker, Sequence[str]], str]] = {
    "add": _plain("Add"),
    "copy": _plain("Identity"),
    "gelu": _gelu,
    "group_norm": _group_norm,
    "hard_sigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_swish": _plain("HardSwish"),
    "layer_norm": _layer_norm,
    "mean": _plain("ReduceMean", axes=[0], keepdims=0),
    "mul": _plain("Mul"),
    "relu": _plain("Relu"),
    "relu6": _relu6,
    "sigmoid": _plain("Sigmoid"),
    "silu": _silu,
    "softmax": _plain("Softmax", axis=-1),
}
