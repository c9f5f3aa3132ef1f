"""From an exported graph to a functional one, without tracing it a second time.

An exported graph may write to tensors in place, hold regions under another autocast mode, and call fused attention. The
usual forms of these are rewritten here; ``make_functional`` says when it met another one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from evoquant.graph.canonical import aten, derive, remove_dead_code, replace

_REGIONS = (torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled)
_NOT_HANDLED = (
    aten.einsum.default,
    aten.conv2d.padding,
    aten.conv1d.padding,
    aten.reshape_as.default,
    aten.view_as.default,
)


def make_functional(program: fx.GraphModule) -> bool:
    """Rewrite the program in place; False if it has something that only a full decomposition can handle.

    Where the answer is False, the program is left in an undefined state.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.HigherOrderOperator) and not _inline(program, node):
            return False
    handled = all(_rewrite(graph, node) for node in list(graph.nodes) if node.op == "call_function")
    remove_dead_code(program)
    return handled


def _rewrite(graph: fx.Graph, node: fx.Node) -> bool:
    if node.target in _NOT_HANDLED:
        return False
    if node.target is aten.scaled_dot_product_attention.default:
        return _unfuse(graph, node)
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        return _out_of_place(graph, node)
    return True


def _inline(program: fx.GraphModule, region: fx.Node) -> bool:
    """Copy a region under another mode into the graph; for inference in single precision the mode means nothing."""
    modules = [item for item in region.args if isinstance(item, fx.Node) and item.op == "get_attr"]
    enables_autocast = region.target is _REGIONS[0] and region.args[2] is not False
    if region.target not in _REGIONS or not modules or enables_autocast:
        return False
    inner = program.get_submodule(str(modules[0].target))
    assert isinstance(inner, fx.GraphModule)
    operands = region.args[region.args.index(modules[0]) + 1 :]
    inputs = (node for node in inner.graph.nodes if node.op == "placeholder")
    values: dict[fx.Node, Any] = dict(zip(inputs, operands, strict=True))
    with program.graph.inserting_before(region):
        results: Any = program.graph.graph_copy(inner.graph, values)
    for user in list(region.users):
        if user.target is not operator.getitem:
            return False
        replace(program.graph, user, results[user.args[1]])
    program.graph.erase_node(region)
    return True


def _out_of_place(graph: fx.Graph, node: fx.Node) -> bool:
    """Replace an operation like ``relu_`` by the one that returns a new tensor, which everything afterwards reads."""
    assert isinstance(node.target, torch._ops.OpOverload)
    functional = _functional_overload(node.target)
    written = node.args[0]
    if functional is None or not isinstance(written, fx.Node) or written.op != "call_function" or _is_aliased(written):
        return False
    new = derive(graph, node, functional, *node.args)
    new.kwargs = node.kwargs
    later = set(_after(node))
    written.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)
    replace(graph, node, new)
    return True


def _functional_overload(target: torch._ops.OpOverload) -> Callable[..., Any] | None:
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None)
    is_safe = isinstance(overload, torch._ops.OpOverload) and not overload._schema.is_mutable
    return overload if is_safe else None


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def _is_aliased(node: fx.Node) -> bool:
    """Whether another tensor shares the memory of a node: it may be a view, or have one."""
    return _may_be_view(node) or any(_may_be_view(user) for user in node.users)


def _may_be_view(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        returns = node.target._schema.returns
        writes = node.target._schema.is_mutable
        aliases = any(value.alias_info is not None for value in returns) and not writes
        return aliases or node.target in (
            aten.reshape.default,
            aten.contiguous.default,
            aten.flatten.using_ints,
            aten.dropout.default,
        )
    return True


def _unfuse(graph: fx.Graph, node: fx.Node) -> bool:
    """softmax(scale·q·kᵀ + mask)·v with the scale on q; other forms than an added mask are not handled."""
    query, key, value, *rest = node.args
    missing: list[Any] = [None, 0.0, False]
    mask, _, is_causal = [*rest, *missing[len(rest) :]][:3]
    mask = node.kwargs.get("attn_mask", mask)
    scale = node.kwargs.get("scale")
    assert isinstance(query, fx.Node)
    is_boolean = isinstance(mask, fx.Node) and mask.meta["val"].dtype is torch.bool
    if is_causal or node.kwargs.get("is_causal") or node.kwargs.get("enable_gqa") or is_boolean or len(rest) > 3:
        return False
    factor = scale if scale is not None else 1.0 / math.sqrt(query.meta["val"].shape[-1])

    def inner(target: Callable[..., Any], *args: object) -> fx.Node:
        new = derive(graph, node, target, *args)
        del new.meta["val"]
        return new

    scores = inner(aten.matmul.default, inner(aten.mul.Tensor, query, factor), inner(aten.transpose.int, key, -2, -1))
    if mask is not None:
        scores = inner(aten.add.Tensor, scores, mask)
    weights = inner(aten.softmax.int, scores, -1)
    replace(graph, node, derive(graph, node, aten.matmul.default, weights, value))
    return True
