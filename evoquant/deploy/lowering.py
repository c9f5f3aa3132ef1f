"""From a captured program to a recipe: what each node becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.deploy.layout import Layout
from evoquant.deploy.memory import overwritten, placed
from evoquant.deploy.recipe import Recipe, View
from evoquant.deploy.weights import StoredWeight
from evoquant.deploy.workspace import Workspace, strided
from evoquant.errors import GraphError
from evoquant.evaluate import Plan
from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.workbench import hash_program
from evoquant.graph import CapturedModel, graph_hash
from evoquant.hardware.attention import fused_attentions
from evoquant.hardware.code_tensors import code_edges
from evoquant.hardware.tensors import TensorTable
from evoquant.types import Op

Handler = Callable[["Lowering", fx.Node, tuple[Any, ...], Mapping[str, Any]], Any]
"""Lowers one node: gets its arguments with tensors as layouts; returns its value, or NotImplemented."""

HANDLERS: dict[str, Handler] = {}
"""By the name of an ATen operator without namespace and overload."""

PLAIN_VALUES = (int, float, bool, str, type(None))


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Lowering:
    """Walks over a captured program once and writes a recipe for one image.

    Attributes:
        space: What is written.
        captured: The model.
        operands: Scales and codes, those of the simulation.
        plan: Precision of every operation.
        ops: Operations by the name of their node.
        activations: Activation functions that belong to an operation: by its node, the node of the function.
        gains: Factors of channels that belong to an operation: by its node, that of the product with them.
        attentions: Attentions that are one kernel, by the node of their scores.
        code_readers: Products that alone read the result of another, by the node of that.
        weights: Stored weights so far.
        values: Layouts and plain values of the nodes so far.
    """

    def __init__(self, captured: CapturedModel, operands: OperandCache, plan: Plan) -> None:
        self.space = Workspace()
        self.captured = captured
        self.operands = operands
        self.plan = plan
        self.ops: dict[str, Op] = {op.node: op for op in captured.graph.ops}
        tensors = TensorTable(captured.graph)
        self.activations = {op_node: name for name, op_node in tensors.fused.items()}
        self.gains = {op_node: name for name, op_node in tensors.gains.items()}
        self.attentions = {attention.scores: attention for attention in fused_attentions(captured.graph)}
        self.code_readers = code_edges(captured.graph)
        self.weights: dict[str, StoredWeight] = {}
        self.values: dict[fx.Node, Any] = {}
        self._fixed: dict[fx.Node, Tensor] = {}
        self._nodes: dict[str, fx.Node] = {node.name: node for node in captured.program.graph.nodes}

    def lower(self) -> Recipe:
        """Write the recipe.

        Raises:
            GraphError: If a node is neither known nor one that torch computes from tensors to one tensor.
        """
        image: View | None = None
        for node in self.captured.program.graph.nodes:
            if node.op == "output":
                return self._finished(node, image)
            if node.op == "placeholder":
                layout = self._input()
                self.values[node] = layout
                image = strided(layout.without(0))
            elif node not in self.values:
                self.values[node] = self._value(node)
        raise GraphError(f"The captured program of '{self.captured.graph.model}' has no output.")

    def resolve(self, argument: Any) -> Any:  # noqa: ANN401
        """An argument of a node with nodes replaced by their values."""
        return fx.node.map_arg(argument, lambda node: self.values[node])

    def attribute(self, node: fx.Node) -> Tensor:
        """The stored tensor of a ``get_attr`` node."""
        owner, _, leaf = str(node.target).rpartition(".")
        value = getattr(self.captured.program.get_submodule(owner), leaf)
        assert isinstance(value, Tensor), "a captured program stores tensors only"
        return value

    def node(self, name: str) -> fx.Node:
        """A node of the program."""
        return self._nodes[name]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's result for one image."""
        return self.captured.graph.node[node.name].shape

    def _input(self) -> Layout:
        shape = self.captured.graph.input_shape
        return self.space.new(shape, order=(0, 2, 3, 1) if len(shape) == 4 else None)

    def _value(self, node: fx.Node) -> Any:  # noqa: ANN401
        if node.op == "get_attr":
            value = self.attribute(node)
            is_weight = all(user.name in self.ops and user.args.index(node) > 0 for user in node.users)
            products = {operator_name(user) for user in node.users} <= {"conv2d", "linear"}
            if not (is_weight and products):
                self._fixed[node] = value
            return value if is_weight and products else self.space.constant(str(node.target), value)
        if node.name not in self.captured.graph.node and self._is_fixed(node):
            return self._folded(node)
        arguments, options = self.resolve(node.args), self.resolve(node.kwargs)
        if not isinstance(node.target, torch._ops.OpOverload):
            assert callable(node.target), "a captured program calls functions only"
            return node.target(*arguments, **options)
        handler = HANDLERS.get(operator_name(node))
        found = handler(self, node, arguments, options) if handler else NotImplemented
        return self._by_torch(node, arguments, options) if found is NotImplemented else found

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether a node is a tensor that depends on stored tensors only."""
        tensors = [source for source in node.all_input_nodes if isinstance(self.values[source], Layout)]
        return bool(tensors) and all(source in self._fixed for source in tensors)

    def _folded(self, node: fx.Node) -> Layout:
        """The value of such a node, computed now."""

        def fixed(source: fx.Node) -> Any:  # noqa: ANN401
            return self._fixed.get(source, self.values[source])

        arguments, options = fx.node.map_arg((node.args, node.kwargs), fixed)
        assert callable(node.target), "a captured program calls functions only"
        with torch.inference_mode():
            value = node.target(*arguments, **options)
        if not isinstance(value, Tensor):
            raise GraphError(f"Node '{node.name}' ({node.target}) cannot be packed: it does not give one tensor.")
        self._fixed[node] = value
        return self.space.constant(node.name, value)

    def _by_torch(self, node: fx.Node, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Layout:
        """One step that calls the operator of torch itself."""
        reads: dict[str, View] = {}

        def described(value: Any) -> Any:  # noqa: ANN401
            if isinstance(value, Layout):
                view = strided(value) or strided(self.space.ordered(node.name, value))
                assert view is not None, "a dense tensor has strides"
                reads[f"x{len(reads)}"] = view
                return {"tensor": f"x{len(reads) - 1}"}
            if isinstance(value, (list, tuple)):
                return [described(entry) for entry in value]
            if isinstance(value, PLAIN_VALUES):
                return value
            raise GraphError(f"Node '{node.name}' ({node.target}) cannot be packed: it takes a {type(value).__name__}.")

        settings = {
            "operator": str(node.target),
            "arguments": described(list(arguments)),
            "options": {name: described(value) for name, value in options.items()},
        }
        if node.name not in self.captured.graph.node:
            raise GraphError(f"Node '{node.name}' ({node.target}) cannot be packed: it does not give one tensor.")
        out = self.space.new(self.shape(node))
        writes = strided(out)
        assert writes is not None, "a new tensor is dense"
        self.space.add("torch", node.name, reads, writes, settings)
        self.space.fallbacks[node.name] = f"{operator_name(node)} is computed by torch"
        return out

    def _finished(self, node: fx.Node, image: View | None) -> Recipe:
        result = self.resolve(node.args[0])
        result = result[0] if isinstance(result, (tuple, list)) and len(result) == 1 else result
        if not isinstance(result, Layout) or image is None:
            raise GraphError(f"'{self.captured.graph.model}' does not return one tensor.")
        output = strided(self.space.ordered("output", result).without(0))
        assert output is not None, "a dense tensor has strides"
        space, graph = self.space, self.captured.graph
        steps, output = overwritten(space.buffers, space.steps, image, output)
        return Recipe(
            graph.model, tuple(graph.input_shape[1:]), image, output,
            placed(space.buffers, steps, image, output), tuple(steps), dict(self.plan), self.weights,
            self._used_constants(), space.fallbacks, self._provenance(),
        )  # fmt: skip

    def _used_constants(self) -> dict[str, Tensor]:
        """Biases and factors of operations, and the stored tensors that steps read."""
        space = self.space
        read = {space.buffers[view.buffer].constant for step in space.steps for view in step.reads.values()}
        own = {f"{op}.{name}" for op in self.weights for name in ("bias", "gains")}
        return {name: tensor for name, tensor in space.constants.items() if name in read or name in own}

    def _provenance(self) -> dict[str, Any]:
        return {
            "versions": {name: version(name) for name in ("evoquant", "torch", "numpy")},
            "graph": graph_hash(self.captured.graph),
            "program": hash_program(self.captured),
        }


def operator_name(node: fx.Node) -> str:
    """The name of the ATen operator of a node, without namespace and overload."""
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
