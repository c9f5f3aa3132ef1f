"""Canonical forms: one spelling for each computation, and nothing in the graph that computes nothing.

Afterwards a graph has ``conv2d``, ``linear`` and ``matmul`` as its only products, ``batch_norm`` as a single node,
``reshape`` instead of views, and no copies, assertions or dropout.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def canonicalize(program: fx.GraphModule) -> None:
    """Rewrite the graph of the program in place."""
    graph = program.graph
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(node.target)
        if node.op == "call_function" and rewrite is not None:
            rewrite(graph, node)
    _merge_reshapes(graph)
    remove_dead_code(program)


def remove_dead_code(program: fx.GraphModule) -> None:
    """Remove nodes and parameters that the output does not depend on, and compile the rest."""
    graph = program.graph
    for node in reversed(list(graph.nodes)):
        if node.op not in ("output", "placeholder") and not node.users:
            graph.erase_node(node)
    graph.lint()
    program.delete_all_unused_submodules()
    _delete_unused_tensors(program)
    program.recompile()


def _delete_unused_tensors(program: fx.GraphModule) -> None:
    used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for path in [name for name, _ in [*program.named_parameters(), *program.named_buffers()]]:
        if path not in used:
            owner, _, leaf = path.rpartition(".")
            delattr(program.get_submodule(owner), leaf)


def derive(graph: fx.Graph, source: fx.Node, target: Callable[..., Any], *args: object) -> fx.Node:
    """Insert a call before ``source``, as a part of what ``source`` computed."""
    with graph.inserting_before(source):
        node = graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = {key: source.meta[key] for key in ("nn_module_stack", "val") if key in source.meta}
    return node


def replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    """Let every user of ``node`` read ``by`` and remove ``node``."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    graph.erase_node(node)


def _skip(graph: fx.Graph, node: fx.Node) -> None:
    replace(graph, node, node.args[0])  # type: ignore[arg-type]


def _clone(graph: fx.Graph, node: fx.Node) -> None:
    """Drop a copy, unless it exists to change the layout of a tensor that is not only reshaped afterwards."""
    asks_for_layout = node.kwargs.get("memory_format") not in (None, torch.preserve_format)
    changes_layout = asks_for_layout or node.target is aten.contiguous.default
    only_reshaped = all(user.target in _RESHAPES for user in node.users)
    if not changes_layout or only_reshaped:
        _skip(graph, node)


def _reshape(graph: fx.Graph, node: fx.Node) -> None:
    replace(graph, node, derive(graph, node, aten.reshape.default, *node.args))


def _merge_reshapes(graph: fx.Graph) -> None:
    """Of reshapes in a row keep the last; drop those that keep the shape."""
    for node in graph.nodes:
        if node.target is not aten.reshape.default:
            continue
        source = node.args[0]
        while source.target is aten.reshape.default:
            source = source.args[0]
        node.update_arg(0, source)
        if _shape(node) is not None and _shape(node) == _shape(source):
            node.replace_all_uses_with(source)


def _shape(node: fx.Node) -> str | None:
    value = node.meta.get("val")
    return None if value is None else str(tuple(value.shape))


def _batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, eps = node.args
    new = derive(graph, node, aten.batch_norm.default, x, weight, bias, mean, variance, False, momentum, eps, False)
    new.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            replace(graph, user, new)


def _matmul(graph: fx.Graph, node: fx.Node) -> None:
    replace(graph, node, derive(graph, node, aten.matmul.default, *node.args))


def _addmm(graph: fx.Graph, node: fx.Node) -> None:
    """beta·bias + alpha·(a·b), for the matrix and the batched form."""
    bias, left, right = node.args
    product = derive(graph, node, aten.matmul.default, left, right)
    for factor in ("alpha", "beta"):
        value = node.kwargs.get(factor, 1)
        if value != 1:
            scaled = product if factor == "alpha" else bias
            scaled = derive(graph, node, aten.mul.Tensor, scaled, value)
            product, bias = (scaled, bias) if factor == "alpha" else (product, scaled)
    replace(graph, node, derive(graph, node, aten.add.Tensor, product, bias))


def _conv1d(graph: fx.Graph, node: fx.Node) -> None:
    """A one-dimensional convolution is a two-dimensional one of height 1."""
    x, weight = node.args[:2]
    rest: list[Any] = list(node.args[2:])
    missing: list[Any] = [None, [1], [0], [1], 1]
    bias, stride, padding, dilation, groups = [*rest, *missing[len(rest) :]]
    image = derive(graph, node, aten.unsqueeze.default, x, 2)
    kernel = derive(graph, node, aten.unsqueeze.default, weight, 2)
    _forget_shape(image, kernel)
    geometry = ([1, *stride], [0, *padding], [1, *dilation], groups)
    result = derive(graph, node, aten.conv2d.default, image, kernel, bias, *geometry)
    _forget_shape(result)
    replace(graph, node, derive(graph, node, aten.squeeze.dim, result, 2))


def _forget_shape(*nodes: fx.Node) -> None:
    for node in nodes:
        node.meta.pop("val", None)


def _convolution(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    if not transposed and len(stride) == 2:  # type: ignore[arg-type]
        new = derive(graph, node, aten.conv2d.default, x, weight, bias, stride, padding, dilation, groups)
        replace(graph, node, new)


def _expand_as(graph: fx.Graph, node: fx.Node) -> None:
    """Leave broadcasting to the operation that reads the tensor, if its other operand has the shape already."""
    for user in node.users:
        others = [item for item in user.args if isinstance(item, fx.Node) and item is not node]
        if user.target not in (aten.mul.Tensor, aten.add.Tensor) or [_shape(item) for item in others] != [_shape(node)]:
            return
    _skip(graph, node)


_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_REWRITES: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    aten._assert_tensor_metadata.default: _erase,
    aten._assert_scalar.default: _erase,
    aten.sym_constrain_range_for_size.default: _erase,
    torch._check: _erase,
    aten.dropout.default: _skip,
    aten.feature_dropout.default: _skip,
    aten.expand_as.default: _expand_as,
    aten.alias.default: _skip,
    aten.detach.default: _skip,
    aten.lift_fresh_copy.default: _skip,
    aten.contiguous.default: _clone,
    aten.clone.default: _clone,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.conv1d.default: _conv1d,
    aten.convolution.default: _convolution,
}
