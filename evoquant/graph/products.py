"""The quantizable products of a program: shapes, geometry, equivalent matrix product, cost.

One multiply-accumulate is one product added to a sum. Convolutions, linear layers and matmuls of activations are
counted; biases, normalizations, activation functions and pooling are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from evoquant.errors import GraphError
from evoquant.graph.canonical import aten
from evoquant.graph.constants import attribute, is_constant
from evoquant.types.graph import ConvGeometry, Node, Op, OpKind, Role

KINDS = {aten.conv2d.default: OpKind.CONV, aten.linear.default: OpKind.LINEAR, aten.matmul.default: OpKind.MATMUL}
_UNSUPPORTED = (
    "conv_",
    "conv1d",
    "conv3d",
    "convolution",
    "lstm",
    "gru",
    "rnn",
    "embedding",
    "bilinear",
    "dot",
    "mv",
    "outer",
)
"""Beginnings of the names of operators that have weights, or multiply sums, in another way."""


def products_of(program: fx.GraphModule, tensors: Sequence[Node]) -> dict[str, Op]:
    """Every product that depends on the image, by the name of its node.

    Role, block and group are not known yet: they are ``conv``, empty and empty; name and node are the same.

    Raises:
        GraphError: If the program has a product that cannot be quantized, or one whose weights depend on the image.
    """
    shapes = {node.name: node.shape for node in tensors}
    products: dict[str, Op] = {}
    for node in program.graph.nodes:
        if node.name not in shapes:
            continue
        kind = KINDS.get(node.target)
        if kind is not None:
            products[node.name] = _product(program, node, kind, shapes)
        elif _name(node).startswith(_UNSUPPORTED):
            raise GraphError(
                f"Operation '{_name(node)}' (node '{node.name}') has weights that cannot be quantized. "
                "Supported products: conv1d, conv2d, linear, matmul, einsum and scaled_dot_product_attention."
            )
    return products


def gemm_of(
    kind: OpKind, left: Sequence[int], right: Sequence[int], out: Sequence[int], groups: int = 1
) -> tuple[int, int, int, int]:
    """The equivalent (batch, m, n, k) of a product from the shapes of its operands and its result."""
    if kind is OpKind.CONV:
        return groups, math.prod(out[2:]) * out[0], out[1] // groups, math.prod(right[1:])
    if kind is OpKind.LINEAR:
        return 1, math.prod(left[:-1]), right[0], right[1]
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    return math.prod(out) // (rows * columns), rows, columns, left[-1]


def _product(program: fx.GraphModule, node: fx.Node, kind: OpKind, shapes: dict[str, tuple[int, ...]]) -> Op:
    operands = [item for item in node.args[:2] if isinstance(item, fx.Node)]
    inputs = tuple(item.name for item in operands if item.name in shapes)
    weight = _stored(program, node, operands, kind)
    right = shapes[operands[1].name] if weight is None else tuple(weight.shape)
    geometry = _geometry(node, right) if kind is OpKind.CONV else None
    left, out = shapes[operands[0].name], shapes[node.name]
    gemm = gemm_of(kind, left, right, out, geometry.groups if geometry else 1)
    return Op(
        name=node.name, kind=kind, role=Role.CONV, block="", block_kind="", group="", node=node.name, inputs=inputs,
        input_shape=left, weight_shape=right, output_shape=out, geometry=geometry, gemm=gemm, macs=math.prod(gemm),
        weight_count=0 if weight is None else weight.numel(), has_bias=len(node.args) > 2 and node.args[2] is not None,
        producers=(), consumers=(),
    )  # fmt: skip


def _stored(program: fx.GraphModule, node: fx.Node, operands: Sequence[fx.Node], kind: OpKind) -> Tensor | None:
    if kind is OpKind.MATMUL:
        constants = [item for item in operands if is_constant(item)]
        if constants:
            raise GraphError(
                f"Node '{node.name}' multiplies by the stored tensor '{constants[0].target}', which has more than two "
                "dimensions. Use a grouped 1x1 convolution, whose weights can be quantized."
            )
        return None
    if not is_constant(operands[1]):
        raise GraphError(
            f"The weights of node '{node.name}' ({kind.value}) are computed from the image. "
            "Dynamic convolutions cannot be quantized; use a model with stored weights."
        )
    return attribute(program, str(operands[1].target))


def _geometry(node: fx.Node, weight: Sequence[int]) -> ConvGeometry:
    missing: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
    rest: list[Any] = list(node.args[3:])
    stride, padding, dilation, groups = [*rest, *missing[len(rest) :]]
    return ConvGeometry(_pair(weight[2:]), _pair(stride), _pair(padding), _pair(dilation), int(groups))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Height and width, also where ATen has one number for both."""
    return int(values[0]), int(values[-1])


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).split("::")[1].strip("_")
