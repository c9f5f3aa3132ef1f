"""Attentions, found by how activations are multiplied with each other.

Three forms are known:

* softmax(q·k)·v: a product of activations that reaches another one, with a softmax between them;
* linear attention, q·(k·v): the same without a softmax;
* separable attention: a softmax whose result weights a sum of activations, without any matmul.
"""

from __future__ import annotations

from dataclasses import dataclass

from evoquant.graph.flow import REDUCTIONS, Flow
from evoquant.types.graph import OpKind


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention: node names of its two products, its projections, and the sums inside it.

    Attributes:
        first: The product that makes the scores (for linear attention, the context); None for separable attention.
        second: The product with the values; None for separable attention.
        scores: Weighted operations between the projections and the second product, such as talking heads.
        projections: Weighted operations that make q, k and v.
        outputs: Weighted operations that take the result.
        joins: Sums inside the attention, which are no residual connections.
    """

    first: str | None
    second: str | None
    scores: frozenset[str]
    projections: frozenset[str]
    outputs: frozenset[str]
    joins: frozenset[str]


def find_attentions(flow: Flow) -> tuple[Attention, ...]:
    """All attentions of a model in the order of computation."""
    pairs = _pairs(flow)
    found = [_with_matmuls(flow, first, second) for first, second in pairs]
    inside = {name for pair in pairs for name in pair if name}
    for name, node in flow.tensors.items():
        if node.kind == "softmax" and not _touches(flow, name, inside) and _weights_a_sum(flow, name):
            found.append(_separable(flow, name))
    return tuple(found)


def _matmuls(flow: Flow) -> list[str]:
    return [name for name, op in flow.products.items() if op.kind is OpKind.MATMUL]


def _pairs(flow: Flow) -> list[tuple[str | None, str | None]]:
    """Pair every second product with the first one that it comes from; what stays alone is decided by its softmax."""
    first_of: dict[str, str] = {}
    for name in _matmuls(flow):
        first = next(
            (node for node in _scores_before(flow, name) if node in flow.products and node not in first_of), None
        )
        if first is not None:
            first_of[name] = first
    pairs: list[tuple[str | None, str | None]] = [(first, second) for second, first in first_of.items()]
    paired = {*first_of, *first_of.values()}
    for name in _matmuls(flow):
        if name not in paired:
            if any(flow.tensors[node].kind == "softmax" for node in flow.before(flow.tensors[name].inputs)):
                pairs.append((None, name))
            elif any(flow.tensors[node].kind == "softmax" for node in flow.after(name)):
                pairs.append((name, None))
    return sorted(pairs, key=lambda pair: flow.order[pair[0] or pair[1] or ""])


def _scores_before(flow: Flow, matmul: str) -> list[str]:
    """Matmuls that reach an operand of this one, also through layers that mix the scores of heads; nearest first."""
    found = []
    for node in flow.before(flow.tensors[matmul].inputs):
        if node in flow.products:
            mixed = _mixed_scores(flow, node)
            found.append(node if mixed is None else mixed)
    return [node for node in found if flow.products[node].kind is OpKind.MATMUL]


def _mixed_scores(flow: Flow, name: str) -> str | None:
    """The matmul whose result a weighted operation mixes, next to a softmax."""
    if not flow.is_weighted(name):
        return None
    around = [*flow.before(flow.tensors[name].inputs), *flow.after(name)]
    if not any(flow.tensors[node].kind == "softmax" for node in around):
        return None
    for source in flow.sources(flow.tensors[name].inputs[0]):
        if flow.products[source].kind is OpKind.MATMUL:
            return source
        if flow.is_weighted(source) and source != name:
            return _mixed_scores(flow, source)
    return None


def _with_matmuls(flow: Flow, first: str | None, second: str | None) -> Attention:
    products = [name for name in (first, second) if name]
    operands = {source for name in products for source in flow.tensors[name].inputs}
    reached = _origins(flow, operands) - set(products)
    scores = _mixers(flow, first, reached)
    projections = reached - scores
    outputs, joins = (
        _outputs(flow, second, projections | scores | set(products)) if second else (frozenset(), frozenset())
    )
    inside = projections | scores | outputs | set(products) | _depthwise_around(flow, projections)
    own = frozenset(name for name in projections if flow.consumers(name) <= inside)
    return Attention(first, second, scores, own, outputs, joins)


def _mixers(flow: Flow, first: str | None, reached: frozenset[str]) -> frozenset[str]:
    """Of these weighted operations those that mix the scores of the first product, with their like before them."""
    found: set[str] = set()
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        if name not in found and _mixed_scores(flow, name) == first is not None:
            found.add(name)
            waiting.extend(flow.sources(flow.tensors[name].inputs[0]))
    return frozenset(found)


def _origins(flow: Flow, operands: set[str]) -> frozenset[str]:
    """The weighted operations that make these tensors; depthwise convolutions are passed through."""
    found: set[str] = set()
    waiting = [source for operand in operands for source in flow.sources(operand)]
    while waiting:
        name = waiting.pop()
        if flow.is_depthwise(name):
            waiting.extend(flow.sources(flow.tensors[name].inputs[0]))
        elif flow.is_weighted(name) and name not in found:
            found.add(name)
            if any(flow.is_depthwise(source) for source in flow.sources(flow.tensors[name].inputs[0])) and _is_grouped(
                flow, name
            ):
                waiting.extend(flow.sources(flow.tensors[name].inputs[0]))
    return frozenset(found)


def _is_grouped(flow: Flow, name: str) -> bool:
    geometry = flow.products[name].geometry
    return geometry is not None and geometry.groups > 1


def _depthwise_around(flow: Flow, names: frozenset[str]) -> set[str]:
    return {reader for name in names for reader in flow.consumers(name) if flow.is_depthwise(reader)}


def _outputs(flow: Flow, start: str, inside: frozenset[str] | set[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The weighted operations after the attention, and the sums passed on the way to them.

    A sum is passed where its other operand comes from inside the attention, for example from the values.
    """
    outputs: set[str] = set()
    joins: set[str] = set()
    seen: set[str] = set()
    waiting = list(flow.readers[start])
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if name in flow.products and not flow.is_depthwise(name):
            outputs.add(name)
        elif not flow.is_join(name) or _is_inside(flow, name, inside):
            joins.update({name} if flow.is_join(name) else ())
            waiting.extend(flow.readers[name])
    return frozenset(name for name in outputs if flow.is_weighted(name)), frozenset(joins)


def _is_inside(flow: Flow, join: str, inside: frozenset[str] | set[str]) -> bool:
    for operand in flow.tensors[join].inputs:
        origins: set[str] = set()
        for source in flow.sources(operand):
            origins |= flow.sources(flow.tensors[source].inputs[0]) if flow.is_depthwise(source) else {source}
        if not origins or not origins <= inside:
            return False
    return True


def _touches(flow: Flow, softmax: str, products: set[str]) -> bool:
    neighbours = [*flow.before([softmax], through_joins=True), *flow.after(softmax)]
    return any(name in products for name in neighbours)


def _weights_a_sum(flow: Flow, softmax: str) -> bool:
    """Whether the softmax over positions multiplies another tensor; over pooled values it is a gate."""
    if not any(flow.tensors[name].kind == "mul" and len(flow.tensors[name].inputs) > 1 for name in flow.after(softmax)):
        return False
    return not pooling_before(flow, softmax)


def _separable(flow: Flow, softmax: str) -> Attention:
    passed = list(flow.after(softmax, through_joins=False))
    operands = {
        source
        for name in passed
        if flow.tensors[name].kind == "mul"
        for source in flow.tensors[name].inputs
        if source not in passed and source != softmax
    }
    projections = _origins(flow, operands | set(flow.tensors[softmax].inputs))
    outputs = frozenset(name for name in passed if flow.is_weighted(name))
    own = frozenset(name for name in projections if flow.consumers(name) <= projections | outputs)
    return Attention(None, None, frozenset(), own, outputs, frozenset())


def pooling_before(flow: Flow, name: str) -> tuple[str, ...]:
    """Weighted operations between a global pooling and this node, last first; empty if no pooling is found.

    Every way back must end in a reduction (a mean or a maximum over positions or channels) after at most four layers.
    """
    passed: list[str] = []
    waiting, seen, found = [name], set(), False
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        node = flow.tensors[current]
        if node.kind in REDUCTIONS or _pools_everything(flow, current):
            found = True
            continue
        if not node.inputs or (current in flow.products and not flow.is_weighted(current)) or len(passed) > 4:
            return ()
        if current in flow.products:
            passed.append(current)
        waiting.extend(node.inputs)
    return tuple(passed) if found else ()


def _pools_everything(flow: Flow, name: str) -> bool:
    node = flow.tensors[name]
    return node.kind in ("avg_pool2d", "max_pool2d") and node.shape[-2:] == (1, 1)
