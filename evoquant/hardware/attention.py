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
    """

    scores: str
    softmax: str
    weighted: str


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
        weighted = _only(graph.readers[softmax])
        if weighted is not None and _is_product(ops.get(weighted), graph.node[weighted].inputs, softmax):
            found.append(FusedAttention(op.node, softmax, weighted))
    return tuple(found)


def _only(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else None


def _is_product(op: Op | None, inputs: tuple[str, ...], softmax: str) -> bool:
    return op is not None and op.role is Role.ATTENTION_AV and inputs[:1] == (softmax,)


def product_and_function(kernel: str) -> tuple[str, str]:
    """The product that a kernel computes, and the function that it applies to the result: empty for none.

    ``gemm+silu`` and ``matmul+softmax`` have one, ``softmax+matmul``, the second part of an attention, has none.
    """
    first, _, second = kernel.partition("+")
    return (second, "") if first in _SOFTMAX and second else (first, second)
