"""From a captured program to a ``ModelGraph``: tensors, products, roles, blocks, names and groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx

from evoquant.errors import GraphError
from evoquant.graph.attention import find_attentions
from evoquant.graph.blocks import assign_blocks
from evoquant.graph.flow import Flow
from evoquant.graph.groups import group_ops
from evoquant.graph.names import name_products, weight_names
from evoquant.graph.products import products_of
from evoquant.graph.roles import classify
from evoquant.graph.tensors import tensors_of
from evoquant.types.graph import ModelGraph, Op


def analyse(
    program: fx.GraphModule, image: Tensor, *, name: str, parameters: int, tied: Mapping[str, str]
) -> ModelGraph:
    """Describe a canonical program.

    Args:
        program: The program.
        image: One image, batch size 1.
        name: Name of the model.
        parameters: Number of parameters of the whole model.
        tied: For a product with the weight of another one, that other one; node names.

    Raises:
        GraphError: If the program has nothing to quantize, or a product without a role.
    """
    tensors = tensors_of(program, image)
    products = products_of(program, tensors)
    if not products:
        raise GraphError(
            f"Model '{name}' has no convolution, linear layer or attention, so there is nothing to quantize."
        )
    output = str(next(node for node in program.graph.nodes if node.op == "output").args[0])
    flow = Flow(tensors, products)
    ops = _finished(program, flow, output)
    graph = ModelGraph(name, tuple(image.shape), tensors, tuple(ops.values()), (), output, parameters)
    pairs = [(ops[first].name, ops[second].name) for second, first in tied.items() if first in ops and second in ops]
    return group_ops(graph, tied=pairs)


def graph_hash(graph: ModelGraph) -> str:
    """SHA-256 of everything that the graph says, as hexadecimal digits."""
    text = json.dumps(graph.to_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(program: fx.GraphModule, flow: Flow, output: str) -> dict[str, Op]:
    attentions = find_attentions(flow)
    roles = classify(flow, output, attentions)
    modules = {node.name: node.module for node in flow.tensors.values()}
    names = name_products(flow.products, roles, weight_names(program), modules)
    inner = {join for attention in attentions for join in attention.joins}
    blocks = assign_blocks(flow, roles, inner)
    finished = {}
    for node, op in flow.products.items():
        before = frozenset().union(*(flow.producers(source) for source in op.inputs))
        finished[node] = replace(
            op,
            name=names[node],
            role=roles[node],
            block=blocks[node][0],
            block_kind=blocks[node][1],
            producers=tuple(names[other] for other in sorted(before, key=flow.order.__getitem__)),
            consumers=tuple(names[other] for other in sorted(flow.consumers(node), key=flow.order.__getitem__)),
        )
    return finished
