"""Simulated quantization of a captured program.

Quantized are both operands of every convolution, linear layer and attention matmul. Norms, softmax, activation
functions, elementwise and residual operations stay in floating point.

The program is prepared once: in front of every operand stands a quantizer that can be exchanged. Applying a plan then
exchanges quantizers and weights, both of which are kept, so that a candidate costs little more than a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn

from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.prefix import Sweep
from evoquant.graph import CapturedModel
from evoquant.types import LayerQuantConfig, Op

Plan = Mapping[str, LayerQuantConfig]


class ActivationQuantizer(nn.Module):
    """A place in the program where an operand is quantized; the identity until a quantizer is set."""

    quantizer: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``, which is left as it is."""
        return x if self.quantizer is None else self.quantizer(x)


class SimulatedModel:
    """A captured model that computes as if quantized.

    Args:
        captured: The floating-point model; its program is copied, its weights are shared.
        operands: Quantized weights and activation quantizers, shared between copies.
    """

    def __init__(self, captured: CapturedModel, operands: OperandCache) -> None:
        self._captured = captured.clone()
        self.operands = operands
        self._graph = captured.graph
        self._add_biases()
        self._places = self._insert_quantizers()
        self._applied: dict[str, LayerQuantConfig] = {}

    def _add_biases(self) -> None:
        """Give operations a bias that have none, so that one that makes good an error of the weight has its place."""
        for op in self._graph.ops:
            if op.weight_count and self._captured.bias(op.name) is None:
                self._captured.set_bias(op.name, torch.zeros(op.weight_shape[0]))

    def clone(self) -> SimulatedModel:
        """Another instance for a concurrent evaluation; kept weights are shared."""
        return SimulatedModel(self.operands.captured, self.operands)

    def _insert_quantizers(self) -> dict[tuple[str, int], ActivationQuantizer]:
        """Put one quantizer in front of every operand; operations of one group that read one tensor share it."""
        program = self._captured.program
        nodes = {node.name: node for node in program.graph.nodes}
        shared: dict[tuple[str, str, int], tuple[torch.fx.Node, ActivationQuantizer]] = {}
        places: dict[tuple[str, int], ActivationQuantizer] = {}
        for op in self._graph.ops:
            user = nodes[op.node]
            for index, source in enumerate(op.inputs):
                key = (op.group, source, index)
                if key not in shared:
                    module = ActivationQuantizer()
                    name = f"quantizer_{len(shared)}"
                    program.add_submodule(name, module)
                    with program.graph.inserting_before(user):
                        shared[key] = (program.graph.call_module(name, (nodes[source],)), module)
                place, module = shared[key]
                arguments = list(user.args)
                arguments[index] = place
                user.args = tuple(arguments)
                places[op.name, index] = module
        program.graph.lint()
        program.recompile()
        return places

    def apply(self, plan: Plan) -> None:
        """Set the precision of every operation.

        Raises:
            PrecisionError: If an operation cannot have the precision that the plan gives it.
        """
        for op in self._graph.ops:
            config = plan[op.name]
            if self._applied.get(op.name) != config:
                self._apply_to(op, config)
                self._applied[op.name] = config

    def _apply_to(self, op: Op, config: LayerQuantConfig) -> None:
        for index in range(len(op.inputs)):
            self._places[op.name, index].quantizer = self.operands.quantizer(op, index, config)
        if op.weight_count:
            self._captured.set_weight(op.name, self.operands.weight(op, config))
            bias = self.operands.bias(op, config)
            self._captured.set_bias(op.name, torch.zeros(op.weight_shape[0]) if bias is None else bias)

    def cut(self, ops: Iterable[str]) -> int:
        """The first position of the program that depends on the precision of these operations (see ``sweep``)."""
        position = {node: index for index, node in enumerate(self._captured.program.graph.nodes)}
        return min(position[node] for name in ops for node in (self._captured.node(name), *self.places_of(name)))

    def places_of(self, op: str) -> list[fx.Node]:
        """The nodes that quantize the activation operands of an operation, in their order."""
        node = self._captured.node(op)
        return [cast(fx.Node, node.args[index]) for index in range(len(self._graph.op[op].inputs))]

    def sweep(self, images: Tensor) -> Sweep:
        """A pass over a batch that can be finished with other precisions of whatever lies behind a cut."""
        return Sweep(self._captured.program, images)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, classes) for images of shape (batch, channels, height, width)."""
        return cast(Tensor, self._captured.program(images))
