"""What an error in an operand costs: samples of its values with the gradient of the loss beside them.

For a small error Δx of an operand the divergence of the class probabilities grows by half the Fisher form
E[(g·Δx)²], g the gradient of log-likelihood. As every operation is linear in its operand, g·Δx is g_O·ΔO at its output,
so ranges that are chosen by it are chosen by their effect on the output, and no product has to be computed.

References:
    Z. Yuan et al., PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform Quantization,
    ECCV 2022, https://arxiv.org/abs/2111.12293, section 3.3: ranges by (g_O·ΔO)².
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from evoquant.graph import CapturedModel
from evoquant.quant.lattice import Lattice
from evoquant.types import Op, OpKind

ROWS = 1024
"""Rows kept of an operand, over all images."""

_BLOCK = 65_536
"""Values that all candidates are tried on at a time: they stay in the cache."""

TEMPERATURE = 2.0
"""Divides logits for the gradient, so that images whose class is certain count too: few bits move them far."""

WITH_HEADS = 4
"""Dimensions of an operand of a matmul that has heads on axis 1."""

Key = TypeVar("Key")
Sample = TypeVar("Sample")

OperandKey = tuple[str, str, int]
"""Group, node and index of an operand: operations of one group that read one node share a quantizer."""


@dataclass(frozen=True, slots=True, eq=False)
class OperandSample:
    """Rows of an operand and of the gradient with respect to it, float32, (heads, rows, channels); one head if none."""

    values: Tensor
    gradients: Tensor

    @property
    def pooled(self) -> OperandSample:
        """The rows of all heads as one."""
        return OperandSample(self.values.flatten(0, 1)[None], self.gradients.flatten(0, 1)[None])

    @property
    def heads(self) -> list[OperandSample]:
        """The rows of each head alone."""
        parts = zip(torch.split(self.values, 1), torch.split(self.gradients, 1), strict=True)
        return [OperandSample(values, gradients) for values, gradients in parts]

    def costs(self, candidates: Iterable[tuple[Lattice, float]]) -> list[float]:
        """Mean over rows of (g·Δx)² for each lattice and scale."""
        tried = list(candidates)
        values, gradients = self.values.flatten(0, 1), self.gradients.flatten(0, 1)
        size = max(1, _BLOCK // values.shape[1])
        totals = torch.zeros(len(tried), dtype=torch.float64)
        for x, gradient in zip(torch.split(values, size), torch.split(gradients, size), strict=True):
            points = torch.empty_like(x)
            for number, (lattice, scale) in enumerate(tried):
                torch.mul(x, 1.0 / scale, out=points)
                error = lattice.nearest_(points).mul_(scale).sub_(x)
                totals[number] += float(error.mul_(gradient).sum(1).square_().sum())
        return [float(total) / len(values) for total in totals]

    def choose(self, rows: int, generator: torch.Generator) -> OperandSample:
        """At most so many rows, of all heads together, at random places that are the same for each head."""
        heads, available, _ = self.values.shape
        kept = torch.randperm(available, generator=generator)[: max(1, rows // heads)]
        return OperandSample(self.values[:, kept].contiguous(), self.gradients[:, kept].contiguous())


def operand_key(op: Op, index: int) -> OperandKey:
    """Which sample belongs to an operand."""
    return op.group, op.inputs[index], index


def sample_operands(
    captured: CapturedModel, batches: Iterable[Tensor], *, images: int, rows: int = ROWS, seed: int = 0
) -> Mapping[OperandKey, OperandSample]:
    """One forward and one backward pass over calibration images.

    The gradient is that of one random direction of the Fisher matrix for each image: ``J^T v`` with ``E[v v^T] =
    diag(p) - p p^T``, p the class probabilities.

    Args:
        captured: The floating-point model.
        batches: Images, batch on axis 0.
        images: How many images there are: each gives an equal share of the rows.
        rows: Rows to keep of each operand.
        seed: Of the directions and of the choice of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[OperandKey, list[OperandSample]] = {}
    for batch in batches:
        run = GradientPass(captured, batch)
        run.back(generator)
        for key, (operand, op) in run.operands.items():
            sample = _by_row(operand.detach(), gradient_of(operand), op, key[2])
            found.setdefault(key, []).append(sample.choose(max(1, rows * len(batch) // images), generator))
    return {key: _joined(samples) for key, samples in found.items()}


def _fisher_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector v for each image with E[v v^T] = diag(p) - p p^T."""
    probability = F.softmax(logits / TEMPERATURE, dim=1)
    noise = probability.sqrt() * torch.randn(logits.shape, generator=generator)
    return noise - probability * noise.sum(1, keepdim=True)


class LazySamples(Generic[Key, Sample]):
    """Samples that are taken when the first of them is asked for; safe to share between threads.

    Args:
        take: Takes all samples.
    """

    def __init__(self, take: Callable[[], Mapping[Key, Sample]]) -> None:
        self._take = take
        self._taken: Mapping[Key, Sample] | None = None
        self._lock = Lock()

    def __getitem__(self, key: Key) -> Sample:
        with self._lock:
            if self._taken is None:
                self._taken = self._take()
            return self._taken[key]


class GradientPass(fx.Interpreter):
    """A batch in the floating-point program, ready for the gradients of any number of random directions.

    Args:
        captured: The floating-point model.
        images: The batch.

    Attributes:
        operands: Every operand, apart from other readers of its node, and an operation that reads it.
        outputs: The output of every operation with a weight.
    """

    def __init__(self, captured: CapturedModel, images: Tensor) -> None:
        super().__init__(captured.program)
        self._ops = {op.node: op for op in captured.graph.ops}
        self.operands: dict[OperandKey, tuple[Tensor, Op]] = {}
        self.outputs: dict[str, Tensor] = {}
        with torch.enable_grad():
            self._logits: Tensor = self.run(images.clone().requires_grad_(True))

    def back(self, generator: torch.Generator) -> None:
        """Replace the gradients by those of a random direction of the Fisher matrix for each image."""
        for tensor in (*(operand for operand, _ in self.operands.values()), *self.outputs.values()):
            tensor.grad = None
        direction = _fisher_direction(self._logits.detach(), generator)
        torch.autograd.backward(self._logits, direction, retain_graph=True)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute a node, and watch it if it is an operation."""
        op = self._ops.get(n.name)
        if op is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        watched = list(args)
        for index in range(len(op.inputs)):
            key = operand_key(op, index)
            if key not in self.operands:
                operand = args[index].view_as(args[index])
                operand.retain_grad()
                self.operands[key] = (operand, op)
            watched[index] = self.operands[key][0]
        result = n.target(*watched, **kwargs)  # type: ignore[operator]
        if op.weight_count:
            result.retain_grad()
            self.outputs[op.name] = result
        return result


def gradient_of(tensor: Tensor) -> Tensor:
    """The gradient of the last direction; zero where the output does not depend on the tensor."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _by_row(values: Tensor, gradients: Tensor, op: Op, index: int) -> OperandSample:
    """All rows along the axis that the operation sums over."""
    axis = 1 if op.kind is OpKind.CONV else -2 if index == 1 else -1
    has_heads = op.kind is OpKind.MATMUL and values.ndim == WITH_HEADS

    def rows(tensor: Tensor) -> Tensor:
        tensor = tensor.movedim(axis, -1)
        heads = tensor.shape[1] if has_heads else 1
        return (tensor.movedim(1, 0) if has_heads else tensor).reshape(heads, -1, tensor.shape[-1])

    return OperandSample(rows(values), rows(gradients))


def _joined(samples: list[OperandSample]) -> OperandSample:
    values = torch.cat([sample.values for sample in samples], dim=1)
    return OperandSample(values, torch.cat([sample.gradients for sample in samples], dim=1))
