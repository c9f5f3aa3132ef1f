"""The role of every product, found from its place in the graph: no rule looks at the name or the type of a module.

The rules are tried in the order in which they stand in ``classify``; the first that fits decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from evoquant.errors import GraphError
from evoquant.graph.attention import Attention, find_attentions, pooling_before
from evoquant.graph.bridges import find_bridges
from evoquant.graph.flow import ACTIVATIONS, REDUCTIONS, Flow
from evoquant.types.graph import OpKind, Role


def classify(flow: Flow, output: str, attentions: tuple[Attention, ...] | None = None) -> dict[str, Role]:
    """Role of every product by node name.

    Args:
        flow: The graph.
        output: Name of the node that the model returns.
        attentions: As ``find_attentions`` gives them; None finds them here.

    Raises:
        GraphError: If a product of activations belongs to no attention.
    """
    attentions = find_attentions(flow) if attentions is None else attentions
    roles: dict[str, Role] = {}
    for name, role in _attention_roles(attentions):
        roles.setdefault(name, role)
    for name in _heads(flow, output):
        roles.setdefault(name, Role.HEAD)
    for name in _stems(flow):
        roles.setdefault(name, Role.STEM)
    for name in _gates(flow):
        roles.setdefault(name, Role.GATE)
    for name, role in _mlps(flow, roles):
        roles.setdefault(name, role)
    for name in find_bridges(flow, attentions, roles):
        roles.setdefault(name, Role.BRIDGE)
    for name in flow.products:
        if name not in roles:
            roles[name] = _plain(flow, name)
    return {name: roles[name] for name in flow.products}


def _attention_roles(attentions: tuple[Attention, ...]) -> Iterator[tuple[str, Role]]:
    for attention in attentions:
        products = ((attention.first, Role.ATTENTION_QK), (attention.second, Role.ATTENTION_AV))
        yield from ((name, role) for name, role in products if name is not None)
        yield from ((name, Role.ATTENTION_QKV) for name in attention.projections)
        yield from ((name, Role.ATTENTION_QK) for name in attention.scores)
    for attention in attentions:
        yield from ((name, Role.ATTENTION_OUT) for name in attention.outputs)


def _heads(flow: Flow, output: str) -> list[str]:
    """The weighted operations that make the logits: the last before the output, if they make a vector per image."""
    last = [name for name in flow.before([output]) if flow.is_weighted(name)]
    vectors = [name for name in last if len(flow.products[name].output_shape) == 2]
    maps = [name for name in last if _is_single_map(flow, name)]
    return vectors or (maps if len(last) == 1 else [])


def _is_single_map(flow: Flow, name: str) -> bool:
    """Whether only pooling and layout follow, as in fully convolutional classifiers."""
    return not flow.consumers(name)


def _stems(flow: Flow) -> list[str]:
    """The first product on the image, and the dense spatial convolutions that follow in one line in the same module."""
    image = next(name for name, node in flow.tensors.items() if node.kind == "input")
    first = sorted((name for name in flow.consumers(image) if flow.is_weighted(name)), key=flow.order.__getitem__)
    stems = list(first)
    current = first[0] if len(first) == 1 else None
    while current is not None:
        current = _next_stem(flow, current, first[0])
        stems.extend([current] if current else [])
    return stems


def _next_stem(flow: Flow, current: str, first: str) -> str | None:
    after = list(flow.after(current))
    if any(len(flow.readers[name]) != 1 for name in [current, *after[:-1]]):
        return None
    name = after[-1]
    if not flow.is_weighted(name) or flow.is_depthwise(name) or flow.is_pointwise(name):
        return None
    if any(flow.tensors[passed].kind in (*REDUCTIONS, "max_pool2d", "avg_pool2d") for passed in after):
        return None
    return name if _part(flow, name) == _part(flow, first) != "" else None


def _part(flow: Flow, name: str) -> str:
    """The component of the module path at which the convolutions of the model first differ."""
    paths = [flow.tensors[product].module.split(".") for product in flow.products if flow.is_weighted(product)]
    heads = [path for path in paths if len(path) > 1] or paths
    depth = 0
    while all(len(path) > depth + 1 for path in heads) and len({path[depth] for path in heads}) == 1:
        depth += 1
    path = flow.tensors[name].module.split(".")
    return path[depth] if len(path) > depth + 1 else ""


def _gates(flow: Flow) -> list[str]:
    """The layers between a global pooling and a product with a larger tensor."""
    found: list[str] = []
    for node in flow.tensors.values():
        if node.kind == "mul" and len(node.inputs) == 2:
            small, large = sorted(node.inputs, key=lambda name: flow.tensors[name].elements)
            if flow.tensors[small].elements < flow.tensors[large].elements:
                found.extend(pooling_before(flow, small))
    return found


def _mlps(flow: Flow, roles: dict[str, Role]) -> Iterator[tuple[str, Role]]:
    """Pairs of pointwise maps with an activation function between them; convolutions only inside a residual branch."""
    taken: set[str] = set()
    for name in flow.products:
        if name in roles or name in taken or not flow.is_pointwise(name):
            continue
        second = _second_of_mlp(flow, name)
        if second is None or roles.get(second) not in (None, Role.HEAD):
            continue
        yield name, Role.MLP_IN
        taken.add(second)
        if second not in roles:
            yield second, Role.MLP_OUT


def _second_of_mlp(flow: Flow, first: str) -> str | None:
    is_linear = flow.products[first].kind is OpKind.LINEAR
    between = list(flow.after(first, through_joins=False))
    reached = {name for name in between if name in flow.products}
    depthwise = {name for name in reached if flow.is_depthwise(name)}
    if is_linear and depthwise and reached == depthwise:
        between += [node for name in depthwise for node in flow.after(name, through_joins=False)]
        reached = {name for name in between if name in flow.products} - depthwise
    kinds = {flow.tensors[name].kind for name in between}
    second = next(iter(reached)) if len(reached) == 1 else None
    if second is None or not flow.is_pointwise(second) or not kinds & ACTIVATIONS or kinds & {*REDUCTIONS, "softmax"}:
        return None
    if is_linear != (flow.products[second].kind is OpKind.LINEAR):
        return None
    return second if is_linear or _ends_in_residual(flow, second) else None


def _ends_in_residual(flow: Flow, name: str) -> bool:
    return any(flow.is_join(node) for node in flow.after(name, through_joins=False))


def _plain(flow: Flow, name: str) -> Role:
    op = flow.products[name]
    if op.kind is OpKind.MATMUL:
        raise GraphError(
            f"The product of activations '{name}' in module '{flow.tensors[name].module}' has no role: no softmax and "
            "no second product of activations is beside it, so it is no attention. Rewrite it with stored weights or "
            "elementwise operations."
        )
    if flow.is_depthwise(name):
        return Role.DEPTHWISE
    geometry = op.geometry
    return Role.POINTWISE if geometry is None or geometry.kernel == (1, 1) else Role.CONV
