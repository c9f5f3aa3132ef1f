"""Constant folding: what does not depend on the image is computed once, and every product owns its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from evoquant.graph.canonical import aten, derive, remove_dead_code, replace

_RANDOM = ("rand", "bernoulli", "normal", "dropout", "multinomial")


def fold_constants(program: fx.GraphModule) -> None:
    """Replace every tensor computed from parameters only by a stored one.

    This covers standardized or re-parametrized weights and gathered position biases.
    """
    known: dict[fx.Node, Any] = {}
    for node in list(program.graph.nodes):
        if node.op == "get_attr":
            known[node] = attribute(program, str(node.target))
        elif node.op == "call_function" and _is_constant(node, known):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: known[item])
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            _store(program, node, value)
    remove_dead_code(program)


def attribute(program: fx.GraphModule, path: str) -> Tensor:
    """The stored tensor with this dotted path."""
    owner, _, leaf = path.rpartition(".")
    value = getattr(program.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value


def set_attribute(program: fx.GraphModule, path: str, value: Tensor) -> None:
    """Replace the stored tensor with this dotted path, for this program alone."""
    owner, _, leaf = path.rpartition(".")
    module = program.get_submodule(owner)
    old = getattr(module, leaf)
    delattr(module, leaf)
    module.register_buffer(leaf, value.detach().to(old))


def constant(program: fx.GraphModule, before: fx.Node, path: str, value: Tensor) -> fx.Node:
    """Store a tensor under this path, or a free one like it, and insert a node that reads it."""
    owner_path, _, leaf = path.rpartition(".")
    owner: torch.nn.Module = program
    for part in owner_path.split(".") if owner_path else ():
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = owner.get_submodule(part)
    free, count = leaf, 0
    while hasattr(owner, free):
        count += 1
        free = f"{leaf}_{count}"
    owner.register_buffer(free, value.detach())
    with program.graph.inserting_before(before):
        return program.graph.get_attr(f"{owner_path}.{free}" if owner_path else free)


def _is_constant(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    if any(word in str(node.target) for word in _RANDOM):
        return False
    return all(source in known for source in node.all_input_nodes)


def _store(program: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    module = module_path(node)
    path = f"{module}.{node.name}" if module else node.name
    replace(program.graph, node, constant(program, node, path, value.contiguous()))


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward made the node, with the mark of repeated calls (``@1``) removed."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""


def is_constant(value: object) -> bool:
    """Whether an argument is a stored tensor."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def products_with_constants(program: fx.GraphModule) -> None:
    """Turn a matmul with one stored operand into a linear layer."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not aten.matmul.default:
            continue
        left, right = node.args
        if is_constant(right) and attribute(program, right.target).dim() == 2:
            weight = _transposed(program, node, right)
            replace(graph, node, derive(graph, node, aten.linear.default, left, weight))
        elif is_constant(left) and attribute(program, left.target).dim() == 2:
            columns = derive(graph, node, aten.transpose.int, right, -2, -1)
            product = derive(graph, node, aten.linear.default, columns, left)
            for new in (columns, product):
                new.meta.pop("val", None)
            replace(graph, node, derive(graph, node, aten.transpose.int, product, -2, -1))
    remove_dead_code(program)


def _transposed(program: fx.GraphModule, before: fx.Node, weight: fx.Node) -> fx.Node:
    value = attribute(program, str(weight.target)).t().contiguous()
    return constant(program, before, str(weight.target), value)


def own_weights(program: fx.GraphModule) -> dict[str, str]:
    """Give every convolution and linear layer weight and bias nodes that no other node reads.

    Values stay shared until one is replaced.

    Returns:
        For each product whose weight another one has too, the name of the node that had it first.
    """
    first: dict[str, str] = {}
    tied: dict[str, str] = {}
    for node in list(program.graph.nodes):
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        for position in (1, 2):
            stored = node.args[position] if len(node.args) > position else None
            if not isinstance(stored, fx.Node) or not is_constant(stored):
                continue
            path = str(stored.target)
            if position == 1 and first.setdefault(path, node.name) != node.name:
                tied[node.name] = first[path]
            if len(stored.users) > 1:
                node.update_arg(position, constant(program, node, path, attribute(program, path)))
    remove_dead_code(program)
    return tied
