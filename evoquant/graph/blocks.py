"""Blocks: which products belong together, from the module tree and from where residual branches end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from evoquant.graph.flow import Flow
from evoquant.types.graph import Role


def assign_blocks(flow: Flow, roles: Mapping[str, Role], inner_joins: Collection[str]) -> dict[str, tuple[str, str]]:
    """Block and block kind of every product by node name.

    The block of a product is the innermost module that adds a residual branch around it; where there is none, the
    largest module around it that holds no other block and is no list of layers. Bridges that lead into and out of one
    global part belong to the module that holds that part.

    Args:
        flow: The graph.
        roles: Of every product.
        inner_joins: Sums that are no residual connections.
    """
    paths = {name: flow.tensors[name].module or name for name in flow.products}
    owners = _residual_owners(flow, inner_joins)
    tree = _Tree(paths.values(), owners)
    blocks = {name: tree.block_of(path) for name, path in paths.items()}
    _merge_stems(blocks, paths, roles)
    hybrids = _merge_bridges(flow, blocks, paths, roles)
    members: dict[str, list[str]] = {}
    for name, block in blocks.items():
        members.setdefault(block, []).append(name)
    kinds = {
        block: "mobilevit" if block in hybrids else _kind(flow, names, roles, block in owners)
        for block, names in members.items()
    }
    return {name: (block, kinds[block]) for name, block in blocks.items()}


def _residual_owners(flow: Flow, inner_joins: Collection[str]) -> set[str]:
    """Paths of the modules that add two tensors of different origin themselves."""
    owners = set()
    for name, node in flow.tensors.items():
        if flow.is_join(name) and name not in inner_joins and node.module:
            origins = {flow.producers(source) for source in node.inputs}
            if len(origins) > 1:
                owners.add(node.module)
    return owners


class _Tree:
    """The tree of module paths that hold products."""

    def __init__(self, paths: Iterable[str], owners: Collection[str]) -> None:
        self._owners = owners
        self._counts: dict[str, int] = {}
        self._children: dict[str, set[str]] = {}
        for path in paths:
            parts = path.split(".")
            for depth in range(1, len(parts) + 1):
                prefix = ".".join(parts[:depth])
                self._counts[prefix] = self._counts.get(prefix, 0) + 1
                self._children.setdefault(".".join(parts[: depth - 1]), set()).add(parts[depth - 1])

    def block_of(self, path: str) -> str:
        ancestors = [path[:end] for end in [*(i for i, char in enumerate(path) if char == "."), len(path)]]
        owned = [ancestor for ancestor in ancestors if ancestor in self._owners]
        if owned:
            return owned[-1]
        largest = next(ancestor for ancestor in ancestors if ancestor == path or self._is_one_block(ancestor))
        same = [
            ancestor
            for ancestor in ancestors
            if self._counts[ancestor] == self._counts[largest] and ancestor.startswith(largest)
        ]
        return same[-1] if self._counts[largest] > 1 else largest

    def _is_one_block(self, path: str) -> bool:
        children = self._children.get(path, set())
        is_list = len(children) > 1 and all(child.isdecimal() for child in children)
        return not is_list and not any(owner.startswith(f"{path}.") for owner in self._owners)


def _merge_stems(blocks: dict[str, str], paths: Mapping[str, str], roles: Mapping[str, Role]) -> None:
    stems = [name for name, role in roles.items() if role is Role.STEM]
    if len(stems) > 1:
        shared = _common([paths[name] for name in stems])
        blocks.update({name: shared for name in stems if shared})


def _merge_bridges(flow: Flow, blocks: dict[str, str], paths: Mapping[str, str], roles: Mapping[str, Role]) -> set[str]:
    """Give bridges the module that holds both directions and the global part between them; returns these modules."""
    inwards: dict[str, list[str]] = {}
    outwards: dict[str, list[str]] = {}
    for name, role in roles.items():
        if role is Role.BRIDGE:
            for holder in _ancestors(paths[name]):
                after = [other for other in roles if roles[other].is_attention and _inside(paths[other], holder)]
                if after:
                    is_before = flow.order[name] < flow.order[after[0]]
                    (inwards if is_before else outwards).setdefault(holder, []).append(name)
                    break
    both = set(inwards) & set(outwards)
    for holder in both:
        blocks.update(dict.fromkeys((*inwards[holder], *outwards[holder]), holder))
    return both


def _ancestors(path: str) -> list[str]:
    """Proper ancestors, innermost first, without the root."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]


def _inside(path: str, holder: str) -> bool:
    return path == holder or path.startswith(f"{holder}.")


def _common(paths: list[str]) -> str:
    shared = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _kind(flow: Flow, names: list[str], roles: Mapping[str, Role], is_residual: bool) -> str:
    """What the block is, from the roles in it."""
    found = {roles[name] for name in names} - {Role.GATE}
    has_mlp = Role.MLP_IN in found or Role.MLP_OUT in found
    expands = any(
        roles[name] is Role.POINTWISE and any(flow.is_depthwise(reader) for reader in flow.consumers(name))
        for name in names
    )
    rules = (
        ("head", Role.HEAD in found),
        ("stem", Role.STEM in found),
        ("transformer", any(role.is_attention for role in found)),
        ("convnext", has_mlp and Role.DEPTHWISE in found),
        ("metaformer", has_mlp),
        ("inverted_residual", Role.DEPTHWISE in found and expands and found <= {Role.POINTWISE, Role.DEPTHWISE}),
        ("separable", found == {Role.DEPTHWISE, Role.POINTWISE}),
        ("residual", is_residual),
    )
    return next((kind for kind, fits in rules if fits), "conv")
