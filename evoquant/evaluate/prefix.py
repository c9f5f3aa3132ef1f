"""Running a program from the middle: what lies in front of a cut is computed once for all that is tried behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


class Sweep:
    """One pass of a program over a batch of images that can be finished from any node, again and again.

    The sweep keeps only the values that are still needed behind the cut, so its memory is that of an ordinary pass.
    Finishing runs the same operations on the same values as the whole program does, so the output is the same to the
    last bit, provided that whatever changed in the program lies behind the cut.

    Args:
        program: A functional program of one input and one output. Its constants and modules are looked up when they
            are needed, so they may be exchanged in between.
        images: The batch.
    """

    def __init__(self, program: fx.GraphModule, images: Tensor) -> None:
        self._program = program
        self._nodes = list(program.graph.nodes)
        self._last_use = last_uses(self._nodes)
        self._values: dict[fx.Node, Any] = {}
        self._images = images
        self._cut = 0

    def advance(self, cut: int) -> None:
        """Compute everything in front of a position; a position that is already passed changes nothing."""
        with torch.inference_mode():
            for position in range(self._cut, cut):
                self._step(position, self._values)
                self._forget(position, self._values)
        self._cut = max(self._cut, cut)

    def finish(self) -> Tensor:
        """Compute everything behind the cut and return the output; the sweep stays where it is."""
        values = dict(self._values)
        with torch.inference_mode():
            for position in range(self._cut, len(self._nodes)):
                node = self._nodes[position]
                if node.op == "output":
                    result = fx.node.map_arg(node.args[0], lambda at: self._value(at, values))
                    assert isinstance(result, Tensor), "a captured program has one output"
                    return result
                self._step(position, values)
                self._forget(position, values)
        raise AssertionError("a program ends with its output")

    def _step(self, position: int, values: dict[fx.Node, Any]) -> None:
        node = self._nodes[position]
        if node.op == "get_attr":
            return
        if node.op == "placeholder":
            values[node] = self._images
            return
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda at: self._value(at, values))
        if node.op == "call_module":
            values[node] = self._program.get_submodule(str(node.target))(*arguments, **options)
        elif node.op == "call_method":
            values[node] = getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        else:
            assert callable(node.target)
            values[node] = node.target(*arguments, **options)

    def _value(self, node: Any, values: dict[fx.Node, Any]) -> Any:  # noqa: ANN401
        if node.op != "get_attr":
            return values[node]
        owner, _, leaf = str(node.target).rpartition(".")
        return getattr(self._program.get_submodule(owner), leaf)

    def _forget(self, position: int, values: dict[fx.Node, Any]) -> None:
        for node in self._last_use.get(position, ()):
            values.pop(node, None)


def last_uses(nodes: list[fx.Node]) -> dict[int, list[fx.Node]]:
    """By position, the nodes whose value nobody needs behind it."""
    last: dict[fx.Node, int] = {}
    for position, node in enumerate(nodes):
        last[node] = position
        for source in node.all_input_nodes:
            last[source] = position
    ending: dict[int, list[fx.Node]] = {}
    for node, position in last.items():
        ending.setdefault(position, []).append(node)
    return ending
