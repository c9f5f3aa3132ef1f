"""Convolutions, linear layers and attention matmuls, with the activation function and the sum that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from evoquant.deploy.functions import activation_of
from evoquant.deploy.layout import Layout
from evoquant.deploy.lowering import Lowering, handles
from evoquant.deploy.recipe import View
from evoquant.deploy.weights import StoredWeight
from evoquant.deploy.workspace import strided
from evoquant.evaluate.native_quantizer import activation_codes
from evoquant.hardware.attention import FusedAttention
from evoquant.hardware.code_tensors import reads_codes, writes_codes
from evoquant.kernels.codes import Operand
from evoquant.quant import QuantParams
from evoquant.types import LayerQuantConfig, Op, QuantizationScheme
from evoquant.types.precision import FLOAT_BITS

Arguments = tuple[Any, ...]
Options = Mapping[str, Any]


@handles("conv2d")
def _conv(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    """A pointwise convolution takes and gives pixels in any order, as the patches of MobileViTv2 have them."""
    op = lowering.ops.get(node.name)
    if op is None or op.geometry is None:
        return NotImplemented
    x: Layout = arguments[0]
    _, channels, height, width = x.shape
    geometry = op.geometry
    is_pointwise = geometry.kernel == geometry.stride == geometry.dilation == (1, 1) and geometry.padding == (0, 0)
    if is_pointwise and geometry.groups == 1:
        if x.row_stride(1) is None:
            x = lowering.space.ordered(node.name, x, (0, 2, 3, 1))
        view = View(x.buffer, (height * width, channels), (x.row_stride(1) or channels, 1), x.offset)
        return _product(lowering, node, op, "gemm", view, lowering.space.new_of(x.with_row(1, op.weight_shape[0])))
    out = lowering.space.new(lowering.shape(node), order=(0, 2, 3, 1))
    is_depthwise = geometry.groups == channels == op.weight_shape[0] and channels > 1
    kind = "depthwise" if is_depthwise else "conv"
    return _product(lowering, node, op, kind, lowering.space.image(node.name, x), out)


@handles("linear")
def _linear(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    op = lowering.ops.get(node.name)
    if op is None:
        return NotImplemented
    out = lowering.space.new(lowering.shape(node))
    return _product(lowering, node, op, "gemm", lowering.space.rows(node.name, arguments[0]), out)


def _product(lowering: Lowering, node: fx.Node, op: Op, kind: str, x: View, out: Layout) -> Layout:
    """Write one product with what follows it; returns the node's own result, which nothing else reads if fused."""
    config = lowering.plan[op.name]
    _store(lowering, op, config)
    params = _params(lowering, op, 0, config)
    settings: dict[str, Any] = {"op": op.name, "activation": "identity", "input": _described(params)}
    if op.geometry is not None:
        settings["geometry"] = {name: getattr(op.geometry, name) for name in op.geometry.__slots__}
    activated = _fused_activation(lowering, node, settings)
    last = activated if kind == "depthwise" else _fused_gains(lowering, op, activated)
    lowering.values[activated] = out
    sum_node, residual = _fused_sum(lowering, last, out)
    reads = {"x": x}
    if residual is not None:
        reads["residual"] = _result(residual, kind, op)
        lowering.values[sum_node] = out
    else:
        _hand_over_codes(lowering, node, last, out, settings)
    lowering.values[last] = out
    lowering.space.add(kind, node.name, reads, _result(out, kind, op), settings)
    return out


def _hand_over_codes(lowering: Lowering, node: fx.Node, last: fx.Node, out: Layout, settings: dict[str, Any]) -> None:
    """Let a product round its result to the codes of the one product that reads it, if that takes them as they lie."""
    reader = lowering.code_readers.get(node.name)
    if reader is None or [user.name for user in last.users] != [reader.node]:
        return
    config = lowering.plan[reader.name]
    params = _params(lowering, reader, 0, config)
    is_dense = reader.geometry is None or out.axes == Layout.dense(0, out.shape, order=(0, 2, 3, 1)).axes
    op = lowering.ops[node.name]
    if params is None or not reads_codes(config) or not writes_codes(op, lowering.plan[op.name]) or not is_dense:
        return
    is_byte = params.axis is None and activation_codes(params).operand is Operand.U8
    if is_byte and _is_integer(lowering, reader, config, params):
        settings["result"] = _described(params)
        lowering.space.hold_codes(out)


def _is_integer(lowering: Lowering, op: Op, config: LayerQuantConfig, params: QuantParams) -> bool:
    """Whether the kernel of a product multiplies integers."""
    _store(lowering, op, config)
    return lowering.weights[op.name].for_kernel(None, activation_codes(params))[1]


def _result(layout: Layout, kind: str, op: Op) -> View:
    """A dense tensor in the shape in which the kernel writes its result."""
    channels = op.weight_shape[0]
    if kind == "gemm":
        return View(layout.buffer, (layout.elements // channels, channels), (channels, 1), layout.offset)
    height, width = op.output_shape[-2:]
    return View(layout.buffer, (height, width, channels), (width * channels, channels, 1), layout.offset)


def _store(lowering: Lowering, op: Op, config: LayerQuantConfig) -> None:
    """Keep the weight of an operation, with the codes of the simulation, and its bias, once."""
    if op.name in lowering.weights:
        return
    operands = lowering.operands
    params = None if config.weight_bits == FLOAT_BITS else operands.quantized_weight(op, config).params
    stored = StoredWeight.quantized(operands.weight(op, config), config, params)
    lowering.weights[op.name] = stored
    bias = operands.bias(op, config)
    if bias is not None:
        lowering.space.constant(f"{op.name}.bias", bias)
    activations = _params(lowering, op, 0, config)
    if activations is not None and not stored.is_float and not _is_integer(lowering, op, config, activations):
        lowering.space.fallbacks[op.name] = f"{config.label}: its codes are multiplied in floating point"


def _params(lowering: Lowering, op: Op, index: int, config: LayerQuantConfig) -> QuantParams | None:
    quantizer = lowering.operands.quantizer(op, index, config)
    if quantizer is None:
        return None
    params = getattr(quantizer, "params", None)
    assert isinstance(params, QuantParams), "operands are quantized by FakeQuant"
    return params


def _described(params: QuantParams | None) -> dict[str, Any] | None:
    """A quantizer as plain JSON values; floats keep every bit."""
    if params is None:
        return None
    return {
        "scheme": params.scheme.value,
        "bits": params.bits,
        "scale": params.scale.tolist(),
        "zero_point": params.zero_point.tolist(),
        "q_min": params.q_min,
        "q_max": params.q_max,
        "axis": params.axis,
        "levels": list(params.levels),
    }


def _fused_activation(lowering: Lowering, node: fx.Node, settings: dict[str, Any]) -> fx.Node:
    """The node whose result the kernel writes: that of the activation function behind it, if there is one."""
    name = lowering.activations.get(node.name)
    user = next((user for user in node.users if user.name == name), None)
    kind = None if user is None else activation_of(user)
    if user is None or kind is None:
        return node
    settings["activation"] = kind
    return user


def _fused_gains(lowering: Lowering, op: Op, last: fx.Node) -> fx.Node:
    """The node behind ``last`` that multiplies each channel by a stored number, if there is one: the kernel does it."""
    user = next((user for user in last.users if user.name == lowering.gains.get(op.node)), None)
    stored = None if user is None else next((value for value in user.args if value is not last), None)
    if user is None or not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return last
    factors = lowering.attribute(stored)
    if factors.shape != (1, op.weight_shape[0], 1, 1):
        return last
    lowering.space.constant(f"{op.name}.gains", factors)
    return user


def _fused_sum(lowering: Lowering, last: fx.Node, out: Layout) -> tuple[fx.Node, Layout | None]:
    """The sum that alone reads a result, and its other operand, where the kernel can add that while it writes."""
    user = next(iter(last.users), last)
    if len(last.users) != 1 or str(user.target) != "aten.add.Tensor" or user.kwargs or len(user.args) != 2:
        return last, None
    other = user.args[1] if user.args[0] is last else user.args[0]
    value = lowering.values.get(other) if isinstance(other, fx.Node) else None
    if not isinstance(value, Layout) or value.shape != out.shape:
        return last, None
    for candidate in (value, *lowering.space.copied(value)):
        if candidate.axes == out.axes:
            return user, candidate
    return last, None


@dataclass(frozen=True, slots=True)
class Scores:
    """The product of queries and keys, and its softmax, that the product with the values will compute.

    Attributes:
        attention: The nodes.
        a: Queries.
        b: Keys.
    """

    attention: FusedAttention
    a: Layout
    b: Layout


@handles("matmul", "bmm")
def _matmul(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    op = lowering.ops.get(node.name)
    if op is None:
        return NotImplemented
    a, b = arguments
    attention = lowering.attentions.get(node.name)
    if attention is not None and _is_one_kernel(lowering, attention):
        return Scores(attention, a, b)
    if isinstance(a, Scores):
        return _attention(lowering, node, a, b)
    config = lowering.plan[op.name]
    a, b = _expanded(lowering, node, a, b)
    first, second = _params(lowering, op, 0, config), _params(lowering, op, 1, config)
    settings: dict[str, Any] = {"op": op.name, "input": None, "second": None}
    if first is not None and second is not None and not _is_kernel(lowering, node):
        lowering.space.fallbacks[op.name] = f"{config.label}: rounded by torch, multiplied in floating point"
        a, b = _rounded(lowering, node, a, first), _rounded(lowering, node, b, second)
    else:
        settings |= {"input": _described(first), "second": _described(second)}
    out = lowering.space.new(lowering.shape(node), order=_order(node, len(a.shape) - 2))
    reads = {"a": _batched(lowering, node, a, "rows"), "b": _batched(lowering, node, b, "any")}
    lowering.space.add("matmul", node.name, reads, _batched(lowering, node, out, "rows"), settings)
    return out


def _expanded(lowering: Lowering, node: fx.Node, *operands: Layout) -> Iterator[Layout]:
    batch = lowering.shape(node)[:-2]
    return (x.expand((*batch, *x.shape[-2:])) for x in operands)


def _is_one_kernel(lowering: Lowering, attention: FusedAttention) -> bool:
    """Whether one kernel computes an attention; the step is written by its second product."""
    scores, softmax, weighted = (
        lowering.node(name) for name in (attention.scores, attention.softmax, attention.weighted)
    )
    is_last_axis = softmax.args[1] in (-1, len(lowering.shape(scores)) - 1)
    return is_last_axis and _is_kernel(lowering, scores) and _is_kernel(lowering, weighted)


def _is_kernel(lowering: Lowering, node: fx.Node) -> bool:
    """Whether the native kernel takes both operands as the plan has them."""
    op = lowering.ops[node.name]
    config = lowering.plan[op.name]
    first, second = _params(lowering, op, 0, config), _params(lowering, op, 1, config)
    return first is None or second is None or _is_native(first, second, len(lowering.shape(node)) - 2)


def _attention(lowering: Lowering, node: fx.Node, scores: Scores, values: Layout) -> Layout:
    """Write one attention."""
    first = lowering.node(scores.attention.scores)
    q, k = _expanded(lowering, first, scores.a, scores.b)
    (v,) = _expanded(lowering, node, values)
    settings: dict[str, Any] = {"relative": bool(scores.attention.relative)}
    for name, product in (("scores", first), ("weighted", node)):
        op = lowering.ops[product.name]
        config = lowering.plan[op.name]
        operands = (_described(_params(lowering, op, index, config)) for index in (0, 1))
        settings[name] = {"op": op.name, **dict(zip(("input", "second"), operands, strict=True))}
    result = lowering.node(scores.attention.result)
    out = lowering.space.new(lowering.shape(node), order=_order(result, len(q.shape) - 2))
    reads = {"q": _batched(lowering, node, q, "rows")}
    reads |= {name: _batched(lowering, node, x, "any") for name, x in (("k", k), ("v", v))}
    lowering.space.add("attention", node.name, reads, _batched(lowering, node, out, "rows"), settings)
    return out


def _is_native(first: QuantParams, second: QuantParams, batch_axes: int) -> bool:
    """Whether the kernel takes these operands: at most 8 bits, and scales of the second for the last batch axis."""
    is_small = first.scheme is QuantizationScheme.LOG2 or activation_codes(first).operand is not Operand.CODES_F32
    is_per_head = second.axis is None or (second.axis in (batch_axes - 1, -3) and batch_axes > 0)
    return is_small and is_per_head and second.bits <= 8 and second.is_symmetric and first.levels_per_octave == 1


def _rounded(lowering: Lowering, node: fx.Node, x: Layout, params: QuantParams) -> Layout:
    """A step of torch that quantizes and dequantizes."""
    x = lowering.space.ordered(node.name, x)
    view = strided(x)
    out = lowering.space.new(x.shape)
    writes = strided(out)
    assert view is not None, "a dense tensor has strides"
    assert writes is not None, "a new tensor is dense"
    lowering.space.add("fake_quantize", node.name, {"x": view}, writes, {"quantizer": _described(params)})
    return out


def _order(node: fx.Node, batch_axes: int) -> tuple[int, ...] | None:
    """Memory order of a product: heads inside of rows where the next node wants them side by side."""
    user = next(iter(node.users), None)
    if batch_axes != 2 or user is None or len(node.users) != 1:
        return None
    swaps = str(user.target) == "aten.transpose.int" and sorted(axis % 4 for axis in user.args[1:]) == [1, 2]  # type: ignore[operator]
    permutes = str(user.target) == "aten.permute.default" and list(user.args[1]) == [0, 2, 1, 3]  # type: ignore[arg-type]
    return (0, 2, 1, 3) if swaps or permutes else None


def _batched(lowering: Lowering, node: fx.Node, x: Layout, wanted: str) -> View:
    """A tensor with two batch axes in plain strides; its last axis contiguous, or one of its last two."""
    batch = x.shape[:-2]
    inner = batch[-1] if batch else 1
    shape = (int(np.prod(batch[:-1], dtype=int)), inner, *x.shape[-2:])
    if not _fits(x, shape, wanted):
        x = lowering.space.ordered(node.name, x)
    found = x.reshape(shape)
    view = None if found is None else strided(found)
    assert view is not None, "a dense tensor has every shape"
    return view


def _fits(x: Layout, shape: tuple[int, ...], wanted: str) -> bool:
    found = x.reshape(shape)
    strides = None if found is None else found.strides
    if strides is None:
        return False
    contiguous = [strides[axis] == 1 or shape[axis] == 1 for axis in (2, 3)]
    return contiguous[1] if wanted == "rows" else any(contiguous)
