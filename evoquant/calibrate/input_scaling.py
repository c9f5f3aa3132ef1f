"""A multiplication of each channel in front of a product whose input cannot be rescaled at its source.

Behind SiLU or a clip at 6 channels keep the ranges that they have, for neither commutes with a factor. A depthwise
convolution reads each channel alone and has a scale for each, so its channels may be brought to one range just before
it, and its weights take the factors back:

    conv(x; W) = conv(x / f; W * f)

One scale for the whole tensor then serves each channel as if it had its own, and the weights of a channel do not lose,
for their own scale takes the factor in.

References:
    N. J. Kim et al., HyQ: Hardware-Friendly Post-Training Quantization for CNN-Transformer Hybrid Networks, IJCAI 2024,
    section 3.2: factors at the quantizer where the activation function does not commute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evoquant.calibrate.channel_flow import NO_ATOM, ChannelFlow, Reader
from evoquant.calibrate.channel_ranges import ChannelRange, Place, place
from evoquant.graph import CapturedModel
from evoquant.graph.constants import constant
from evoquant.types import Op, Role
from evoquant.types.graph import Node

aten = torch.ops.aten

SMALLEST_RANGE = 1e-4
"""Ranges below it count as this one, relative to the greatest range of the tensor."""


def fixed_depthwise_inputs(captured: CapturedModel, flow: ChannelFlow) -> list[Reader]:
    """Inputs of depthwise convolutions whose channels nothing in front of them can scale, in the order of computation.

    Args:
        captured: The model.
        flow: Its channels.
    """
    free = {
        reader.op
        for reader in flow.readers
        if bool((flow.factors_read(reader) != NO_ATOM).all())
    }  # fmt: skip
    ops = [op for op in captured.graph.ops if op.role is Role.DEPTHWISE and op.name not in free]
    return [_input(op) for op in ops]


def _input(op: Op) -> Reader:
    channels = op.input_shape[1]
    return Reader(op.name, op.inputs[0], 1, torch.full((channels,), NO_ATOM).numpy())


def even_factors(reader: Reader, ranges: Mapping[Place, ChannelRange]) -> Tensor:
    """Factors that make the channels alike, float64, (channels,), with a geometric mean of 1.

    Alike are the geometric means of the greatest magnitude, which clipping is lost at, and of the root mean square,
    which resolution is lost by.
    """
    of_input = ranges[place(reader)]
    magnitude = (of_input.magnitude * of_input.mean_square.sqrt()).sqrt()
    bounded = magnitude.clamp(min=max(SMALLEST_RANGE * float(magnitude.max()), 1e-30)).log()
    return (bounded - bounded.mean()).exp()


def scale_inputs(captured: CapturedModel, factors: Mapping[str, Tensor]) -> CapturedModel:
    """A model that divides the inputs of some depthwise convolutions by factors, and computes the same.

    Args:
        captured: The model; not changed.
        factors: By operation, (channels,).

    Returns:
        A copy with one more node for each.
    """
    changed = captured.clone()
    nodes = list(changed.graph.nodes)
    ops = {op.name: op for op in changed.graph.ops}
    for name, factor in factors.items():
        op = ops[name]
        scaled = _insert(changed, op, factor)
        nodes.insert(next(index for index, node in enumerate(nodes) if node.name == op.node), scaled)
        ops[name] = replace(op, inputs=(scaled.name, *op.inputs[1:]))
        weight = captured.weight(name)
        assert weight is not None, "a convolution has a weight"
        changed.set_weight(name, weight.double() * factor[:, None, None, None])
    nodes = [_reading(node, ops.values()) for node in nodes]
    changed.program.recompile()
    graph = replace(changed.graph, nodes=tuple(nodes), ops=tuple(ops.values()))
    return CapturedModel(changed.program, graph, changed.batch_norms)


def _insert(changed: CapturedModel, op: Op, factor: Tensor) -> Node:
    """Put the multiplication in front of the operation."""
    node = changed.node(op.name)
    source, path = node.args[0], str(node.args[1].target)  # type: ignore[union-attr]
    inverse = (1.0 / factor).float().view(1, -1, 1, 1)
    stored = constant(changed.program, node, f"{path}_input_scale", inverse)
    with changed.program.graph.inserting_before(node):
        scaled = changed.program.graph.create_node(
            "call_function", aten.mul.Tensor, (source, stored), name=f"{op.node}_input"
        )
    node.update_arg(0, scaled)
    before = changed.graph.node[op.inputs[0]]
    module = changed.graph.node[op.node].module
    return Node(scaled.name, "mul", (before.name,), before.shape, is_view=False, module=module)


def _reading(node: Node, ops: Collection[Op]) -> Node:
    """The node of an operation with the inputs that the operation has now."""
    op = next((op for op in ops if op.node == node.name), None)
    return node if op is None or op.inputs == node.inputs else replace(node, inputs=op.inputs)
