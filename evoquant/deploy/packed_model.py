"""The packed model: a whole network on the native kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from evoquant.deploy import lower_products, lower_tensors, lower_views
from evoquant.deploy.executor import Executor
from evoquant.deploy.lowering import HANDLERS, Lowering
from evoquant.deploy.recipe import Recipe
from evoquant.errors import ModelError, PrecisionError
from evoquant.evaluate import Plan
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import CapturedModel
from evoquant.kernels.arrays import FloatArray
from evoquant.kernels.program import Program, copy_strided

_LOWERED_BY = (lower_products, lower_tensors, lower_views)
"""Importing them fills the table of handlers."""
assert HANDLERS


class PackedModel(nn.Module):
    """A network on the native kernels, with the quantizers of the simulation.

    Convolutions, linear layers and attention matmuls quantize their own input and multiply codes; what lies between
    them is computed in float32. One image is computed at a time. Not for training, and for one thread of Python at a
    time: all calls share their memory.

    Results differ from the simulation by the rounding of float32 alone: sums are taken in another order, and
    exponentials by another polynomial. Where a value lies on the edge between two codes, that moves it by one step.

    Args:
        recipe: What to run.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Raises:
        KernelError: If the native kernels are not built.
    """

    def __init__(self, recipe: Recipe, *, isa: str | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self._executor = Executor(recipe, isa=isa)

    @property
    def plan(self) -> Plan:
        """Precision of every operation."""
        return self.recipe.plan

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """What no kernel does as it was asked for, by node or operation, with what is done instead."""
        return self.recipe.fallbacks

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, classes) for images of shape (batch, channels, height, width), float32.

        Raises:
            ModelError: If the images have another shape or type.
        """
        source = self._checked(images)
        result = np.empty((len(images), *self._executor.output.shape), np.float32)
        for index in range(len(images)):
            copy_strided(source[index], self._executor.input)
            self._executor.run()
            result[index] = self._executor.output
        return torch.from_numpy(result)

    def timer(self, image: Tensor) -> Callable[[int], float]:
        """A function that computes one image so often and returns the seconds that took, its way in included.

        Raises:
            ModelError: If the image has another shape or type.
        """
        source = self._checked(image)[0]
        executor = self._executor

        def run(repeats: int) -> float:
            start = time.perf_counter()
            for _ in range(repeats):
                copy_strided(source, executor.input)
                executor.run()
            return time.perf_counter() - start

        return run

    def _checked(self, images: Tensor) -> FloatArray:
        expected = self.recipe.input_shape
        if images.dtype is not torch.float32 or tuple(images.shape[1:]) != expected or images.ndim != len(expected) + 1:
            raise ModelError(
                f"Expected float32 images of shape (batch, {', '.join(map(str, expected))}), "
                f"but got {images.dtype} of shape {tuple(images.shape)}."
            )
        array: FloatArray = images.detach().numpy()
        return array

    def step_times(self, repeats: int = 20) -> list[tuple[str, str, float]]:
        """Kind, node and mean seconds of each native call, on the image that was computed last.

        Raises:
            ModelError: If some steps are computed by torch.
        """
        stretches = self._executor.stretches
        if any(not isinstance(stretch, Program) for stretch in stretches):
            raise ModelError("Times of single steps are for models without steps of torch.")
        seconds = [
            time for stretch in stretches if isinstance(stretch, Program) for time in stretch.step_seconds(repeats)
        ]
        return [(step.kind, step.node, time) for step, time in zip(self.recipe.steps, seconds, strict=True)]


def pack(captured: CapturedModel, operands: OperandCache, plan: Plan, *, isa: str | None = None) -> PackedModel:
    """Pack a captured model at a precision.

    Args:
        captured: The model.
        operands: The scales and codes that the simulation uses (``AccuracyEvaluator.operands``).
        plan: Precision of every operation.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Raises:
        PrecisionError: If the plan does not name every operation.
        GraphError: If a node can be computed neither by kernels nor by torch.
        KernelError: If the native kernels are not built.
    """
    missing = [op.name for op in captured.graph.ops if op.name not in plan]
    if missing:
        raise PrecisionError(f"The plan has no precision for {', '.join(missing[:3])} ({len(missing)} operations).")
    return PackedModel(Lowering(captured, operands, plan).lower(), isa=isa)
