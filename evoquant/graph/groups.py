"""Groups: products that obey one gene."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import StrEnum

from evoquant.graph.names import joined
from evoquant.types.graph import Group, ModelGraph, Op, Role


class GroupPolicy(StrEnum):
    """Which products share a gene.

    ``SHARED_INPUT``: separate q, k and v projections of one tensor. ``RESIDUAL``: these, and the products whose results
    are added to each other, for targets that want one scale for both operands of a sum.
    """

    SHARED_INPUT = "shared_input"
    RESIDUAL = "residual"


def group_ops(
    graph: ModelGraph, policy: GroupPolicy | str = GroupPolicy.SHARED_INPUT, *, tied: Iterable[tuple[str, str]] = ()
) -> ModelGraph:
    """The same graph with its groups formed anew.

    Args:
        graph: A model.
        policy: Which products share a gene.
        tied: Pairs of op names that have one weight; they always share a gene.
    """
    partition = _Partition([op.name for op in graph.ops])
    for first, second in (*tied, *_shared_inputs(graph.ops)):
        partition.join(first, second)
    if GroupPolicy(policy) is GroupPolicy.RESIDUAL:
        for first, second in _added(graph):
            partition.join(first, second)
    groups = tuple(Group(names[0] if len(names) == 1 else joined(names), tuple(names)) for names in partition.classes())
    of = {name: group.name for group in groups for name in group.ops}
    return replace(graph, groups=groups, ops=tuple(replace(op, group=of[op.name]) for op in graph.ops))


def _shared_inputs(ops: Sequence[Op]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    pairs = []
    for op in ops:
        if op.role is Role.ATTENTION_QKV:
            pairs.append((first.setdefault(op.inputs[0], op.name), op.name))
    return pairs


def _added(graph: ModelGraph) -> list[tuple[str, str]]:
    """Pairs of products whose results meet in one sum, through layout, normalization and scaling only."""
    op_of = {op.node: op.name for op in graph.ops}
    nearest: dict[str, frozenset[str]] = {}
    pairs: list[tuple[str, str]] = []
    for node in graph.nodes:
        reached: Collection[str] = sorted(frozenset().union(*(nearest[name] for name in node.inputs)))
        if node.kind == "add" and len(set(node.inputs)) > 1:
            pairs.extend((op_of[name], op_of[other]) for name, other in zip(reached, list(reached)[1:], strict=False))
        nearest[node.name] = frozenset({node.name}) if node.name in op_of else frozenset(reached)
    return pairs


class _Partition:
    """Disjoint sets of names that can be joined."""

    def __init__(self, names: Sequence[str]) -> None:
        self._parent = {name: name for name in names}

    def _root(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        self._parent[self._root(second)] = self._root(first)

    def classes(self) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._parent:
            found.setdefault(self._root(name), []).append(name)
        return list(found.values())
