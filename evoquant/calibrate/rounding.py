"""Learned rounding: codes and biases of a block, moved by the gradient of the error of the block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.segment import Segment, relative_error, straight_through
from evoquant.config.quantizers import RoundingSpec
from evoquant.quant import QuantParams
from evoquant.quant.params import lattice_of
from evoquant.types import Op, QuantizationScheme

STEPS_FROM_ROUNDING = 0.4
"""Latent codes start at the float weight, but no farther from their code than this, so no code changes at first."""

Quantizers = Mapping[tuple[str, int], Callable[[Tensor], Tensor] | None]
"""Quantizers of activation operands by operation and index."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockImages:
    """What a block gets and should give, in pieces of images.

    Attributes:
        inputs: Its input in the quantized network.
        targets: Its output in the floating-point network.
        known: For each piece, values of earlier nodes that are no tensors of the image.
        is_held_out: Which pieces judge and are not fitted to.
    """

    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    known: Sequence[Mapping[fx.Node, Any]]
    is_held_out: Sequence[bool]


@dataclass(frozen=True, slots=True)
class LearnedBlock:
    """The outcome of learning one block.

    Attributes:
        weights: New weights by operation; empty where nothing was gained.
        before: Relative square error of the block's output on the held-out images with the old weights.
        after: The same with the new ones.
    """

    weights: Mapping[str, QuantizedWeight]
    before: float
    after: float


class _Learning:
    """Latent codes and bias of one weight; the scales stay as they are."""

    def __init__(self, original: Tensor, stored: QuantizedWeight, bias: Tensor | None) -> None:
        self.stored = stored
        params = stored.params
        self.is_learned = _learns_codes(params)
        self.scale, shift = (_by_element(values, params, original) for values in (params.scale, params.zero_point))
        self.step, self.lattice = params.least_step, lattice_of(params, zero_point=shift)
        codes = stored.weight / (self.scale * self.step)
        distance = (original / (self.scale * self.step) - codes).clamp(-STEPS_FROM_ROUNDING, STEPS_FROM_ROUNDING)
        self.latent = (codes + distance).clone().requires_grad_(self.is_learned)
        start = stored.bias if stored.bias is not None else bias
        self.start = torch.zeros(original.shape[0]) if start is None else start
        self.bias_steps = torch.zeros_like(self.start, requires_grad=True)
        self.bias_unit: float | None = None

    def weight(self) -> Tensor:
        """The quantized weight; its gradient goes to the latent codes."""
        if not self.is_learned:
            return self.stored.weight
        points = self.latent * self.step
        nearest = self.lattice.nearest_(points.detach().clone())
        return (points + (nearest - points.detach())) * self.scale

    def bias(self) -> Tensor:
        """The bias; its gradient goes to its steps."""
        return self.start + self.bias_steps * (self.bias_unit or 0.0)

    def result(self) -> QuantizedWeight:
        """What was learned, as values."""
        with torch.no_grad():
            weight = self.stored.weight
            if self.is_learned:
                weight = self.lattice.nearest_(self.latent * self.step) * self.scale
            steps = (*self.stored.steps, "learned")
            return replace(self.stored, weight=weight, bias=self.bias().clone(), steps=steps)


def learn_rounding(
    segment: Segment,
    images: BlockImages,
    originals: Mapping[str, tuple[Tensor, Tensor | None]],
    weights: Mapping[str, QuantizedWeight],
    quantizers: Quantizers,
    settings: RoundingSpec,
) -> LearnedBlock:
    """Learn the codes and biases of a block.

    The square error of the block's output falls by Adam, with rounding passed straight through, over the pieces of
    images in turn; the rate falls to zero along a cosine. Meanwhile a share of the activations, at random, is not
    quantized, so that weights do not lean on single errors of activations. What was learned stays if it helps on the
    held-out pieces.

    Args:
        segment: The block.
        images: What it gets and should give.
        originals: Float weights and biases.
        weights: Quantized weights to start from.
        quantizers: Of the activations.
        settings: Iterations and rates.

    References:
        M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020; Y. Li et al.,
        "BRECQ", ICLR 2021 (blocks as the unit); X. Wei et al., "QDrop", ICLR 2022, https://arxiv.org/abs/2203.05740
        (activations left float at random).
    """
    learning = {name: _Learning(originals[name][0], stored, originals[name][1]) for name, stored in weights.items()}
    run = BlockRun(segment, learning, originals, quantizers)
    fitted = [index for index, held_out in enumerate(images.is_held_out) if not held_out]
    held_out = [index for index, held_out in enumerate(images.is_held_out) if held_out]
    before = run.error(images, held_out)
    with torch.enable_grad():
        _descend(run, images, fitted, settings)
    after = run.error(images, held_out)
    found = {name: part.result() for name, part in learning.items()} if after < before else {}
    return LearnedBlock(found, before, min(before, after))


class BlockRun:
    """Computes a block with what is being learned."""

    def __init__(
        self,
        segment: Segment,
        learning: Mapping[str, _Learning],
        originals: Mapping[str, tuple[Tensor, Tensor | None]],
        quantizers: Quantizers,
    ) -> None:
        self.segment = segment
        self.learning = learning
        self._originals = originals
        self._quantizers = quantizers
        self._float_share = 0.0
        self._generator = torch.Generator()

    @classmethod
    def with_weights(
        cls,
        segment: Segment,
        originals: Mapping[str, tuple[Tensor, Tensor | None]],
        weights: Mapping[str, QuantizedWeight],
        quantizers: Quantizers,
    ) -> BlockRun:
        """A block with given weights; operations without one stay float."""
        parts = {name: _Learning(originals[name][0], weight, originals[name][1]) for name, weight in weights.items()}
        return cls(segment, parts, originals, quantizers)

    def __call__(self, x: Tensor, known: Mapping[fx.Node, Any]) -> Tensor:
        """The output of the block."""
        return self.segment(x, known, self._compute)

    @contextmanager
    def dropping(self, share: float, generator: torch.Generator) -> Iterator[None]:
        """Meanwhile this share of the values of operands, at random, is not quantized."""
        self._float_share, self._generator = share, generator
        yield
        self._float_share = 0.0

    def error(self, images: BlockImages, pieces: Sequence[int]) -> float:
        """Relative square error of some pieces; the first one also sets the units of the biases."""
        with torch.no_grad():
            outputs = [self(images.inputs[index], images.known[index]) for index in pieces]
        return relative_error(outputs, [images.targets[index] for index in pieces])

    def _compute(self, op: Op, target: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
        operands = [self._quantized(op, index, args[index]) for index in range(len(op.inputs))]
        if not op.weight_count:
            return target(*operands)
        part = self.learning.get(op.name)
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


def _descend(run: BlockRun, images: BlockImages, pieces: Sequence[int], settings: RoundingSpec) -> None:
    latents = [part.latent for part in run.learning.values() if part.is_learned]
    biases = [part.bias_steps for part in run.learning.values()]
    optimizer = torch.optim.Adam(
        [{"params": latents, "lr": settings.code_rate}, {"params": biases, "lr": settings.bias_rate}], betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    with run.dropping(settings.float_share, generator):
        for _ in range(settings.iterations):
            if not order:
                order = torch.randperm(len(pieces), generator=generator).tolist()
            index = pieces[order.pop()]
            target = images.targets[index]
            loss = (run(images.inputs[index], images.known[index]) - target).square().mean() / target.square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _learns_codes(params: QuantParams) -> bool:
    """Whether codes can follow a gradient: their points lie about evenly."""
    return params.codebook is None or params.scheme is QuantizationScheme.NORMAL


def _by_element(values: Tensor, params: QuantParams, weight: Tensor) -> Tensor:
    """Scales or zero points in a shape that broadcasts to the weight."""
    if params.group_size is not None:
        return values.repeat_interleave(params.group_size, dim=1).reshape(weight.shape)
    return values.reshape(-1, *[1] * (weight.ndim - 1)) if params.axis is not None else values
