"""Names of products: module paths, with a suffix for matmuls that are no modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import fx

from evoquant.graph.constants import is_constant, module_path
from evoquant.types.graph import Op, OpKind, Role

_WEIGHT = re.compile(r"[._]?weight(_\d+)?$")
_SUFFIX = {Role.ATTENTION_QK: "qk", Role.ATTENTION_AV: "av"}


def weight_names(program: fx.GraphModule) -> dict[str, str]:
    """For each product with stored weights the path of the module that owns them, by node name.

    It is the path of the parameter without its last part; for weights computed from several parameters, the module that
    computed them.
    """
    found = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and len(node.args) > 1 and is_constant(node.args[1]):
            path = str(node.args[1].target)
            owner = _WEIGHT.sub("", path) if _WEIGHT.search(path) else module_path(node)
            found[node.name] = owner or module_path(node)
    return found


def name_products(
    products: Mapping[str, Op], roles: Mapping[str, Role], owners: Mapping[str, str], modules: Mapping[str, str]
) -> dict[str, str]:
    """A unique name for every product, by node name.

    Repeated names, of modules called more than once, get ``#1``, ``#2``, ... from the second on.

    Args:
        products: By node name.
        roles: By node name.
        owners: As ``weight_names`` gives them.
        modules: Path of the module whose forward made each node.
    """
    wanted = []
    for node, op in products.items():
        if op.kind is OpKind.MATMUL:
            suffix = _SUFFIX.get(roles[node], "matmul")
            wanted.append(f"{modules[node]}.{suffix}" if modules[node] else suffix)
        else:
            wanted.append(owners.get(node) or modules[node] or node)
    return dict(zip(products, _unique(wanted), strict=True))


def _unique(names: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique


def joined(names: Iterable[str]) -> str:
    """One name for several: their common part, and the rest in braces: ``attn.{q,k,v}``."""
    parts = [name.split(".") for name in names]
    depth = 0
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    rest = ",".join(".".join(part[depth:]) for part in parts)
    prefix = ".".join(parts[0][:depth])
    return f"{prefix}.{{{rest}}}" if prefix else f"{{{rest}}}"
