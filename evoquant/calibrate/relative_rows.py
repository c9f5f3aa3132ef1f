"""The weights that an attention gives to values, in units of the greatest of their row.

    softmax(s) · v = m (softmax(s) / m · v),    m the greatest weight of each row

One scale serves all rows of an attention, whose greatest weights lie far apart: a row that looks at one value reaches
1, one that looks at all of them may not reach a tenth, and has a tenth of the codes. In units of its greatest weight
each row has all of them. ``softmax(s) / m`` is ``exp(s - max(s))``, so a fused kernel divides by the sum after the
product with the values instead of before.

References:
    T. Dao et al., FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, NeurIPS 2022, section
    3.1: the division by the sum of a row follows the product with the values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import fx

from evoquant.graph import CapturedModel
from evoquant.types import Op, Role
from evoquant.types.graph import Node

aten = torch.ops.aten
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def softmax_products(captured: CapturedModel) -> list[str]:
    """Attention products whose first operand is a softmax over its last axis, in the order of computation."""
    return [op.name for op in captured.graph.ops if op.role is Role.ATTENTION_AV and _is_softmax(captured, op)]


def _is_softmax(captured: CapturedModel, op: Op) -> bool:
    source = captured.node(op.name).args[0]
    assert isinstance(source, fx.Node), "a matmul reads nodes"
    rank = len(op.input_shape)
    return source.target in _SOFTMAX and source.args[1] in (-1, rank - 1) and rank == len(op.output_shape) > 1


def with_relative_rows(captured: CapturedModel, names: Collection[str]) -> CapturedModel:
    """A model whose rows of these products are relative, and that computes the same.

    Args:
        captured: The model; not changed.
        names: Of ``softmax_products``.

    Returns:
        A copy with three more nodes for each.
    """
    changed = captured.clone()
    nodes = list(changed.graph.nodes)
    ops = {op.name: op for op in changed.graph.ops}
    renamed: dict[str, str] = {}
    for name in names:
        op = ops[name]
        top, relative, result = _insert(changed, op)
        position = next(index for index, node in enumerate(nodes) if node.name == op.node)
        product = replace(nodes[position], inputs=(relative.name, *op.inputs[1:]))
        nodes[position : position + 1] = [top, relative, product, result]
        ops[name] = replace(op, inputs=product.inputs)
        renamed[op.node] = result.name
    changed.program.recompile()
    added = set(renamed.values())
    nodes = [node if node.name in added else _reading(node, renamed) for node in nodes]
    later = {op.name: replace(op, inputs=tuple(renamed.get(name, name) for name in op.inputs)) for op in ops.values()}
    output = renamed.get(changed.graph.output, changed.graph.output)
    graph = replace(changed.graph, nodes=tuple(nodes), ops=tuple(later.values()), output=output)
    return CapturedModel(changed.program, graph, changed.batch_norms)


def _insert(changed: CapturedModel, op: Op) -> tuple[Node, Node, Node]:
    """Put the division in front of the product and the multiplication behind it."""
    graph, product = changed.program.graph, changed.node(op.name)
    weights = product.args[0]
    assert isinstance(weights, fx.Node), "a matmul reads nodes"
    with graph.inserting_before(product):
        top = graph.create_node("call_function", aten.amax.default, (weights, [-1], True), name=f"{op.node}_top")
        relative = graph.create_node("call_function", aten.div.Tensor, (weights, top), name=f"{op.node}_relative")
    product.update_arg(0, relative)
    with graph.inserting_after(product):
        result = graph.create_node("call_function", aten.mul.Tensor, (product, top), name=f"{op.node}_result")
    product.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    module = changed.graph.node[op.node].module
    shapes = ((*op.input_shape[:-1], 1), op.input_shape, op.output_shape)
    inputs = ((weights.name,), (weights.name, top.name), (product.name, top.name))
    made = zip((top, relative, result), ("amax", "div", "mul"), inputs, shapes, strict=True)
    first, second, third = (
        Node(node.name, kind, read, shape, is_view=False, module=module) for node, kind, read, shape in made
    )
    return first, second, third


def _reading(node: Node, renamed: dict[str, str]) -> Node:
    return replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
