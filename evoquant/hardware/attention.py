"""Attentions that are one kernel: two products and the softmax between them, which nothing else reads."""

from __future__ import annotations

from dataclasses import dataclass

from evoquant.types.graph import ModelGraph, Op, Role

_SOFTMAX = frozenset({"softmax", "_softmax"})


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Names of the nodes of one attention.

    Attributes:
        scores: The product of queries and keys.
        softmax: Its softmax.
        weighted: The product of that and the values.
        relative: Where rows of the softmax are taken in units of their greatest value: that value, the row in its
            units, and the result of the product in its units. Empty where they are not.
    """

    scores: str
    softmax: str
    weighted: str
    relative: tuple[str, ...] = ()

    @property
    def between(self) -> tuple[str, ...]:
        """What is neither of the products."""
        return (self.softmax, *self.relative)

    @property
    def result(self) -> str:
        """What the kernel gives."""
        return self.relative[-1] if self.relative else self.weighted


def fused_attentions(graph: ModelGraph) -> tuple[FusedAttention, ...]:
    """The attentions of a graph whose scores go through a softmax to the values, and nowhere else.

    A bias on the scores, as in Swin or LeViT, keeps the products apart.
    """
    ops = {op.node: op for op in graph.ops}
    found: list[FusedAttention] = []
    for op in graph.ops:
        softmax = _only(graph.readers[op.node]) if op.role is Role.ATTENTION_QK else None
        if softmax is None or graph.node[softmax].kind not in _SOFTMAX:
            continue
        relative = _relative(graph, softmax)
        operand = relative[1] if relative else softmax
        weighted = _only(graph.readers[operand])
        if weighted is not None and _is_product(ops.get(weighted), graph.node[weighted].inputs, operand):
            found.append(FusedAttention(op.node, softmax, weighted, relative))
    return tuple(found)


def _relative(graph: ModelGraph, softmax: str) -> tuple[str, ...]:
    """The nodes around a product that reads relative rows of a softmax; empty if there is no such."""
    read_by = graph.readers[softmax]
    top = read_by[0] if len(read_by) == 2 and graph.node[read_by[0]].kind == "amax" else None
    if top is None or graph.node[read_by[1]].inputs != (softmax, top) or graph.node[read_by[1]].kind != "div":
        return ()
    product = _only(graph.readers[read_by[1]])
    result = None if product is None else _only(graph.readers[product])
    is_whole = result is not None and graph.node[result].kind == "mul" and graph.node[result].inputs == (product, top)
    return (top, read_by[1], result) if result is not None and is_whole else ()


def _only(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else None


def _is_product(op: Op | None, inputs: tuple[str, ...], operand: str) -> bool:
    return op is not None and op.role is Role.ATTENTION_AV and inputs[:1] == (operand,)


def product_and_function(kernel: str) -> tuple[str, str]:
    """The product that a kernel computes, and the function that it applies to the result: empty for none.

    ``gemm+silu`` and ``matmul+softmax`` have one, ``softmax+matmul``, the second part of an attention, has none.
    """
    first, _, second = kernel.partition("+")
    return (second, "") if first in _SOFTMAX and second else (first, second)
