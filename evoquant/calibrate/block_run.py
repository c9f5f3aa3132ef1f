"""A stretch of the network, computed with quantized weights and activations of which some are learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.segment import Segment, straight_through
from evoquant.quant import QuantParams
from evoquant.types import Op

Originals = Mapping[str, tuple[Tensor, Tensor | None]]
"""Float weights and biases by operation."""

Quantizers = Mapping[tuple[str, int], Callable[[Tensor], Tensor] | None]
"""Quantizers of activation operands by operation and index."""


class WeightPart:
    """A quantized weight with its bias, whose change is learned; subclasses learn more.

    Attributes:
        stored: The weight that is started from.
        bias_steps: Change of the bias, in units of ``bias_unit``.
        bias_unit: Root mean square of the first output that was computed.
    """

    def __init__(self, stored: QuantizedWeight, bias: Tensor | None) -> None:
        self.stored = stored
        start = stored.bias if stored.bias is not None else bias
        self._start = torch.zeros(stored.weight.shape[0]) if start is None else start
        self.bias_steps = torch.zeros_like(self._start, requires_grad=True)
        self.bias_unit: float | None = None

    def weight(self) -> Tensor:
        """The quantized weight."""
        return self.stored.weight

    def bias(self) -> Tensor:
        """The bias; its gradient goes to its steps."""
        return self._start + self.bias_steps * (self.bias_unit or 0.0)


class BlockRun:
    """Computes a block; operations without a part stay float, operands without a quantizer too."""

    def __init__(
        self,
        segment: Segment,
        parts: Mapping[str, WeightPart],
        originals: Originals,
        quantizers: Quantizers,
    ) -> None:
        self._segment = segment
        self._parts = parts
        self._originals = originals
        self._quantizers = quantizers
        self._float_share = 0.0
        self._generator = torch.Generator()

    def __call__(self, x: Tensor, known: Mapping[fx.Node, Any]) -> Tensor:
        """The output of the block."""
        return self._segment(x, known, self._compute)

    @contextmanager
    def dropping(self, share: float, generator: torch.Generator) -> Iterator[None]:
        """Meanwhile this share of the values of operands, at random, is not quantized."""
        self._float_share, self._generator = share, generator
        yield
        self._float_share = 0.0

    def _compute(self, op: Op, target: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
        operands = [self._quantized(op, index, args[index]) for index in range(len(op.inputs))]
        if not op.weight_count:
            return target(*operands)
        part = self._parts.get(op.name)
        if part is None:
            return target(operands[0], *self._originals[op.name], *args[3:])
        out: Tensor = target(operands[0], part.weight(), part.bias(), *args[3:])
        if part.bias_unit is None:
            part.bias_unit = float(out.square().mean().sqrt())
        return out

    def _quantized(self, op: Op, index: int, x: Tensor) -> Tensor:
        quantizer = self._quantizers.get((op.name, index))
        params = getattr(quantizer, "params", None)
        is_even = isinstance(params, QuantParams) and params.codebook is None
        tolerance = float(params.scale.max()) if is_even and isinstance(params, QuantParams) else math.inf
        quantized = straight_through(x, quantizer, tolerance)
        if quantizer is None or not self._float_share:
            return quantized
        return torch.where(torch.rand(x.shape, generator=self._generator) < self._float_share, x, quantized)
