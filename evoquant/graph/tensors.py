"""The tensors of a program for one image: shapes and aliases, found by running it once."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from evoquant.graph.constants import module_path
from evoquant.types.graph import Node


def tensors_of(program: fx.GraphModule, image: Tensor) -> tuple[Node, ...]:
    """Every tensor that depends on the image, in the order of computation.

    A node that returns several tensors (``unbind``, ``split``) is represented by the nodes that pick one of them, which
    take its kind and its inputs. Constants and sizes are left out.

    Args:
        program: A canonical program.
        image: Of shape (1, channels, height, width).
    """
    recorder = _Recorder(program)
    with torch.inference_mode():
        recorder.run(image)
    return tuple(recorder.nodes.values())


class _Recorder(fx.Interpreter):
    """Runs the program and describes each tensor that depends on the image."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.nodes: dict[str, Node] = {}
        self._storages: dict[str, int] = {}
        self._parts: dict[str, tuple[str, tuple[str, ...]]] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.op in ("placeholder", "call_function"):
            self._record(n, result)
        return result

    def _record(self, node: fx.Node, result: object) -> None:
        kind, inputs = self._origin(node)
        if node.op != "placeholder" and not inputs:
            return
        if isinstance(result, list | tuple):
            self._parts[node.name] = kind, inputs
        if not isinstance(result, Tensor):
            return
        storage = result.untyped_storage().data_ptr()
        is_view = bool(inputs) and self._storages[inputs[0]] == storage
        self._storages[node.name] = storage
        self.nodes[node.name] = Node(node.name, kind, inputs, tuple(result.shape), is_view, module_path(node))

    def _origin(self, node: fx.Node) -> tuple[str, tuple[str, ...]]:
        if node.op == "placeholder":
            return "input", ()
        source = node.args[0]
        if node.target is operator.getitem and isinstance(source, fx.Node) and source.name in self._parts:
            return self._parts[source.name]
        names = [source.name for source in node.all_input_nodes if source.name in self.nodes]
        return kind_of(node), tuple(names)


def kind_of(node: fx.Node) -> str:
    """Name of the ATen operator without namespace, overload and leading or trailing underscore."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1].strip("_")
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def module_types(program: fx.GraphModule) -> Mapping[str, str]:
    """Qualified class name of every module that was called, by path."""
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            found[str(path).split("@")[0]] = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return found
