"""Capture: a model becomes a program that runs, and a graph that says what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from evoquant.errors import GraphError
from evoquant.graph.analysis import analyse
from evoquant.graph.batch_norm import BatchNormReport, fold_batch_norms
from evoquant.graph.canonical import canonicalize
from evoquant.graph.constants import attribute, constant, fold_constants, own_weights, products_with_constants
from evoquant.graph.export import example_input, export_program, frozen_copy
from evoquant.types.graph import ModelGraph

MAX_RELATIVE_ERROR = 1e-3
"""Largest difference of the captured program to the model, relative to the largest output, before capture refuses."""
_CHECK_BATCH = 3  # another size than at export, so that a frozen batch size shows


@dataclass(slots=True)
class CapturedModel:
    """A model as one functional graph of ATen operations with all batch normalizations folded.

    Attributes:
        program: Takes images of shape (batch, channels, height, width), any batch size, and returns the output of the
            model. Parameters are frozen; nodes have the names that ``graph`` uses.
        graph: What the program consists of.
        batch_norms: Which batch normalizations were folded and which remain.
    """

    program: fx.GraphModule
    graph: ModelGraph
    batch_norms: BatchNormReport
    _nodes: dict[str, fx.Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_name = {node.name: node for node in self.program.graph.nodes}
        self._nodes = {op.name: by_name[op.node] for op in self.graph.ops}

    def __call__(self, images: Tensor) -> Tensor:
        """Run the program without recording gradients."""
        with torch.inference_mode():
            result = self.program(images)
        assert isinstance(result, Tensor)
        return result

    def weight(self, op: str) -> Tensor | None:
        """Weight of an operation, (out, in, kernel height, kernel width) or (out, in); None for a matmul."""
        path = self._path(op, 1)
        return None if path is None else attribute(self.program, path)

    def bias(self, op: str) -> Tensor | None:
        """Bias of an operation, (out,), or None if it has none."""
        path = self._path(op, 2)
        return None if path is None else attribute(self.program, path)

    def set_weight(self, op: str, weight: Tensor) -> None:
        """Replace the weight of one operation of this program; clones and the captured model keep theirs.

        Raises:
            GraphError: If the operation has no weight or another shape.
        """
        self._set(op, 1, weight, self.weight(op))

    def set_bias(self, op: str, bias: Tensor) -> None:
        """Replace the bias of one operation, or give it one; clones keep theirs.

        Raises:
            GraphError: If the operation is a matmul or the bias is not of shape (out channels,).
        """
        weight = self.weight(op)
        self._set(op, 2, bias, None if weight is None else weight.flatten(1)[:, 0])

    def clone(self) -> CapturedModel:
        """A copy whose weights can be replaced and whose graph can be edited alone; memory of the weights is shared."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.program.graph, values))
        program = fx.GraphModule(self.program, graph, class_name="CapturedProgram").eval()
        return CapturedModel(program, self.graph, self.batch_norms)

    def node(self, op: str) -> fx.Node:
        """The node of the program that computes an operation."""
        if op not in self._nodes:
            raise GraphError(f"Model '{self.graph.model}' has no operation '{op}'.")
        return self._nodes[op]

    def _path(self, op: str, position: int) -> str | None:
        node = self.node(op)
        stored = node.args[position] if len(node.args) > position else None
        return str(stored.target) if isinstance(stored, fx.Node) and stored.op == "get_attr" else None

    def _set(self, op: str, position: int, value: Tensor, like: Tensor | None) -> None:
        if like is None or value.shape != like.shape:
            expected = "no stored tensor" if like is None else f"shape {tuple(like.shape)}"
            raise GraphError(f"Operation '{op}' takes {expected}, but got a tensor of shape {tuple(value.shape)}.")
        value = value.detach().to(like)
        path = self._path(op, position)
        if path is None:
            self._add_bias(op, value)
            return
        owner, _, leaf = path.rpartition(".")
        module = self.program.get_submodule(owner)
        delattr(module, leaf)
        module.register_buffer(leaf, value)

    def _add_bias(self, op: str, value: Tensor) -> None:
        node = self.node(op)
        path = str(node.args[1].target)  # type: ignore[union-attr]
        stored = constant(self.program, node, f"{path}_bias", value)
        node.args = (*node.args[:2], stored, *node.args[3:])
        self.program.recompile()


def capture(model: nn.Module, input_shape: tuple[int, int, int], *, name: str) -> CapturedModel:
    """Capture a model, fold its batch normalizations and analyse its structure.

    The model itself is not changed. Constants are folded, dropout is removed, and fused attention becomes two matmuls.

    Args:
        model: Takes one tensor of images and returns one tensor.
        input_shape: Channels, height and width of the images.
        name: Name that the graph carries.

    Raises:
        GraphError: If the model cannot be exported, has a product that cannot be quantized or classified, or if the
            program does not compute what the model computes.
    """
    copied = frozen_copy(model, name=name)
    images = example_input(copied, input_shape, batch=_CHECK_BATCH)
    expected = _output(frozen_copy(model, name=name), images, name)
    program = export_program(copied, input_shape, name=name)
    canonicalize(program)
    fold_constants(program)
    products_with_constants(program)
    tied = own_weights(program)
    report = fold_batch_norms(program)
    canonicalize(program)
    _check(program, images, expected, name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    graph = analyse(program, images[:1], name=name, parameters=parameters, tied=tied)
    return CapturedModel(program, graph, report)


def _output(model: nn.Module, images: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            output = model(images)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError) as error:
        shape = tuple(images.shape)
        message = f"Model '{name}' does not run on images of shape {shape}: {error}\nCheck input_shape."
        raise GraphError(message) from error
    if not isinstance(output, Tensor):
        raise GraphError(f"Model '{name}' must return one tensor of logits, but returns {type(output).__name__}.")
    return output


def _check(program: fx.GraphModule, images: Tensor, expected: Tensor, name: str) -> None:
    with torch.inference_mode():
        got = program(images)
    error = ((expected - got).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    if not error <= MAX_RELATIVE_ERROR:
        raise GraphError(
            f"The captured program of '{name}' differs from the model by {error:.1e} relative to its largest "
            f"output, where at most {MAX_RELATIVE_ERROR:.0e} is expected. A model whose evaluation is random, or "
            "whose output is not finite, cannot be captured."
        )
