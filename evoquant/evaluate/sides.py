"""The two sides of the choices of a group: what they do to the weights, and what they do to the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

from evoquant.evaluate.operands import activation_part, weight_part
from evoquant.space import Plan
from evoquant.types import FLOAT_BITS, LayerQuantConfig, ModelGraph, OpKind

Part: TypeAlias = tuple[tuple[str, LayerQuantConfig], ...]
"""One side of a choice: the precision of each operation of the group with the other side in floating point."""


@dataclass(frozen=True, slots=True)
class Side:
    """The weights, or the activations, of all choices of one group.

    Attributes:
        parts: What is distinct on this side.
        of_choice: For each choice, in their order, the index of its part.
    """

    parts: tuple[Part, ...]
    of_choice: tuple[int, ...]

    @classmethod
    def of(cls, choices: Sequence[Part]) -> Self:
        """From this side of every choice."""
        indices = {part: index for index, part in enumerate(dict.fromkeys(choices))}
        return cls(tuple(indices), tuple(indices[part] for part in choices))


def sides_of(graph: ModelGraph, plans: Sequence[Plan]) -> tuple[Side, Side]:
    """Weights and activations of the choices of a group; both operands of a matmul are activations."""
    ops = graph.op
    weights = [
        tuple(
            (name, replace(weight_part(config), activation_bits=FLOAT_BITS))
            for name, config in plan.items()
            if ops[name].weight_count
        )
        for plan in plans
    ]
    activations = [
        tuple(
            (name, config)
            if ops[name].kind is OpKind.MATMUL
            else (name, replace(activation_part(0, config), weight_bits=FLOAT_BITS))
            for name, config in plan.items()
        )
        for plan in plans
    ]
    return Side.of(weights), Side.of(activations)
