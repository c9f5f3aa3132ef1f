"""Stretches of a program between two places where one tensor alone carries everything on: the blocks of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.graph import CapturedModel
from evoquant.graph.constants import attribute
from evoquant.types import Op

OpFunction = Callable[[Op, Callable[..., Tensor], tuple[Any, ...]], Tensor]
"""Computes an operation from its function and its arguments."""


def narrow_places(captured: CapturedModel) -> frozenset[str]:
    """Nodes behind which no other tensor that depends on the image is needed.

    The sum that ends a residual block is one. Integers, such as sizes, do not count.
    """
    nodes = list(captured.program.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    alive: set[fx.Node] = set()
    narrow = set()
    for index, node in enumerate(nodes):
        alive = {other for other in alive if last_use[other] > index}
        if node.name in captured.graph.node:
            if not alive:
                narrow.add(node.name)
            alive.add(node)
    return frozenset(narrow)


def whole_network(captured: CapturedModel) -> Segment:
    """From the images to the logits."""
    nodes = list(captured.program.graph.nodes)
    source = next(node for node in nodes if node.op == "placeholder")
    computed = tuple(node for node in nodes if node.op not in ("placeholder", "output"))
    return Segment(captured.program, computed, source, {op.node: op for op in captured.graph.ops})


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive nodes that compute one tensor from one tensor.

    Attributes:
        program: The whole program.
        nodes: Those of the segment, in order; the last one makes its output.
        source: The node that makes its input.
        ops: Operations by the name of their node.
    """

    program: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    source: fx.Node
    ops: Mapping[str, Op]

    def __call__(self, x: Tensor, known: Mapping[fx.Node, Any], compute: OpFunction) -> Tensor:
        """Compute the output.

        Args:
            x: Value of the source.
            known: Values of earlier nodes that are no tensors of the image, such as sizes.
            compute: Computes operations.
        """
        values: dict[fx.Node, Any] = {**known, self.source: x}
        for node in self.nodes:
            if node.op == "get_attr":
                values[node] = attribute(self.program, str(node.target))
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda at: values[at])
            target: Any = node.target
            op = self.ops.get(node.name)
            values[node] = target(*args, **kwargs) if op is None else compute(op, target, args)
        result = values[self.nodes[-1]]
        assert isinstance(result, Tensor), "a segment ends with a tensor"
        return result


def relative_error(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Square error of outputs, relative to the square of the targets."""
    error = sum(float((out - target).double().square().sum()) for out, target in zip(outputs, targets, strict=True))
    power = sum(float(target.double().square().sum()) for target in targets)
    return error / power if power > 0 else error


def straight_through(x: Tensor, quantizer: Callable[[Tensor], Tensor] | None, tolerance: float) -> Tensor:
    """A quantized tensor whose gradient is that of the identity where its values are not clipped.

    Args:
        x: Values.
        quantizer: Quantizes and dequantizes; None leaves them.
        tolerance: Values that move farther are clipped.
    """
    if quantizer is None:
        return x
    with torch.no_grad():
        change = quantizer(x.detach()) - x
        is_inside = change.abs() <= tolerance
    return torch.where(is_inside, x, x.detach()) + change
