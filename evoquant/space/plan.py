"""A plan: the precision of every operation of a graph, and the name by which equal plans are recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from evoquant.types import LayerQuantConfig

Plan: TypeAlias = Mapping[str, LayerQuantConfig]
"""Operation name to precision, one entry for each operation of a graph."""


def plan_hash(plan: Plan) -> str:
    """A name of 64 hexadecimal digits for what a plan computes: SHA-256 of its entries in the order of their names."""
    return hash_sorted_lines(sorted(plan_line(name, config) for name, config in plan.items()))


def plan_line(name: str, config: LayerQuantConfig) -> bytes:
    """The entry of one operation in the hashed text of a plan."""
    return f"{name}\t{json.dumps(config.to_dict(), sort_keys=True)}\n".encode()


def hash_sorted_lines(lines: Iterable[bytes]) -> str:
    """SHA-256 of plan entries in order; each begins with its name, so the order does not hang on the precisions."""
    return hashlib.sha256(b"".join(lines)).hexdigest()
