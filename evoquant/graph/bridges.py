"""Bridges: the convolutions that join a local part (feature maps) and a global part (tokens under attention).

    map ─ [k×k conv] ─ [1×1 conv] ─ unfold ─ attention, mlp, ... ─ fold ─ [conv] ─ cat with the map ─ [conv] ─ map

An entry is the convolution whose map becomes the tokens of an attention, with the spatial convolution right before it
if that one serves nothing else. An exit is a dense convolution that takes tokens folded back to a map, with the one
that fuses its result with a map from before. Convolutions between two global parts (a downsampling of tokens) are no
bridge.
"""

from __future__ import annotations

from collections.abc import Mapping

from evoquant.graph.attention import Attention
from evoquant.graph.flow import Flow
from evoquant.types.graph import OpKind, Role


def find_bridges(flow: Flow, attentions: tuple[Attention, ...], roles: Mapping[str, Role]) -> frozenset[str]:
    """Node names of all bridges, given the roles known so far."""
    entries = _entries(flow, attentions, roles)
    exits = _exits(flow, attentions, roles)
    between_tokens = {name for name in exits if any(_follows(flow, name, chain) for chain in entries)}
    found: set[str] = set()
    for chain in entries:
        if not any(_follows(flow, name, chain) for name in between_tokens):
            found.update(chain)
    for name in exits - between_tokens:
        found.update({name} | _fusions(flow, name, roles))
    return frozenset(found)


def _is_free_convolution(flow: Flow, name: str, roles: Mapping[str, Role]) -> bool:
    return name not in roles and flow.products[name].kind is OpKind.CONV


def _is_folded(flow: Flow, tensor: str, as_read: str) -> bool:
    """Whether a tensor is read in another layout of the same values: tokens of a map, or a map of tokens."""
    before, after = flow.tensors[tensor], flow.tensors[as_read]
    return before.elements == after.elements and before.shape != after.shape


def _entries(flow: Flow, attentions: tuple[Attention, ...], roles: Mapping[str, Role]) -> list[tuple[str, ...]]:
    """For each entry its one or two convolutions, the last one first."""
    chains: dict[str, tuple[str, ...]] = {}
    for attention in attentions:
        for projection in attention.projections:
            stream = flow.tensors[projection].inputs[0]
            for name in flow.sources(stream):
                if _is_free_convolution(flow, name, roles) and _is_folded(flow, name, stream):
                    chains[name] = (name, *_spatial_before(flow, name, roles))
    return list(chains.values())


def _spatial_before(flow: Flow, name: str, roles: Mapping[str, Role]) -> tuple[str, ...]:
    sources = flow.sources(flow.tensors[name].inputs[0])
    if not flow.is_pointwise(name) or len(sources) != 1:
        return ()
    (before,) = sources
    alone = flow.consumers(before) == {name} and not any(flow.is_join(node) for node in flow.after(before))
    if not alone or not _is_free_convolution(flow, before, roles) or flow.is_pointwise(before):
        return ()
    return (before,)


def _exits(flow: Flow, attentions: tuple[Attention, ...], roles: Mapping[str, Role]) -> set[str]:
    """Dense convolutions that read a token stream, folded to a map."""
    sums = _token_sums(flow, attentions, roles)
    found = set()
    for name, op in flow.products.items():
        if _is_free_convolution(flow, name, roles) and not flow.is_depthwise(name):
            way = flow.before(op.inputs, through_joins=False)
            if any(node in sums and _is_folded(flow, node, op.inputs[0]) for node in way):
                found.add(name)
    return found


def _token_sums(flow: Flow, attentions: tuple[Attention, ...], roles: Mapping[str, Role]) -> set[str]:
    """Where the results of attentions and MLPs join their residual streams."""
    ends = {name for attention in attentions for name in attention.outputs}
    ends |= {name for name, role in roles.items() if role is Role.MLP_OUT}
    after = (node for name in ends for node in flow.after(name, through_joins=False))
    return {node for node in after if flow.is_join(node)}


def _follows(flow: Flow, exit_: str, chain: tuple[str, ...]) -> bool:
    """Whether the entry chain comes directly after the exit, with nothing local between them."""
    return exit_ in chain or exit_ in flow.sources(flow.tensors[chain[-1]].inputs[0])


def _fusions(flow: Flow, exit_: str, roles: Mapping[str, Role]) -> set[str]:
    """The convolution that reads the exit's result side by side with a map from before the tokens."""
    way = list(flow.after(exit_, through_joins=False))
    joined = any(flow.tensors[name].kind == "cat" for name in way)
    return {name for name in way if joined and name in flow.products and _is_free_convolution(flow, name, roles)}
