"""Learned rounding: codes and biases of a block, moved by the gradient of the error of the block's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.block_run import BlockRun, Originals, Quantizers, WeightPart
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.descent import descend
from evoquant.calibrate.segment import Segment, relative_error
from evoquant.config.quantizers import RoundingSpec
from evoquant.quant import QuantParams
from evoquant.quant.params import lattice_of
from evoquant.types import QuantizationScheme

STEPS_FROM_ROUNDING = 0.4
"""Latent codes start at the float weight, but no farther from their code than this, so no code changes at first."""


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


class _Learning(WeightPart):
    """Latent codes of one weight; the scales stay as they are."""

    def __init__(self, stored: QuantizedWeight, original: Tensor, bias: Tensor | None) -> None:
        super().__init__(stored, bias)
        params = stored.params
        self.is_learned = _learns_codes(params)
        self.scale, shift = (_by_element(values, params, original) for values in (params.scale, params.zero_point))
        self.step, self.lattice = params.least_step, lattice_of(params, zero_point=shift)
        codes = stored.weight / (self.scale * self.step)
        distance = (original / (self.scale * self.step) - codes).clamp(-STEPS_FROM_ROUNDING, STEPS_FROM_ROUNDING)
        self.latent = (codes + distance).clone().requires_grad_(self.is_learned)

    def weight(self) -> Tensor:
        """The quantized weight; its gradient goes to the latent codes."""
        if not self.is_learned:
            return self.stored.weight
        points = self.latent * self.step
        nearest = self.lattice.nearest_(points.detach().clone())
        return (points + (nearest - points.detach())) * self.scale

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
    originals: Originals,
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
    learning = {name: _Learning(stored, *originals[name]) for name, stored in weights.items()}
    run = BlockRun(segment, learning, originals, quantizers)
    fitted = [index for index, held_out in enumerate(images.is_held_out) if not held_out]
    held_out = [index for index, held_out in enumerate(images.is_held_out) if held_out]
    before = _error(run, images, held_out)  # sets the units of the biases
    _learn(run, learning.values(), images, fitted, settings)
    after = _error(run, images, held_out)
    found = {name: part.result() for name, part in learning.items()} if after < before else {}
    return LearnedBlock(found, before, min(before, after))


def _error(run: BlockRun, images: BlockImages, pieces: Sequence[int]) -> float:
    """Relative square error of some pieces."""
    with torch.no_grad():
        outputs = [run(images.inputs[index], images.known[index]) for index in pieces]
    return relative_error(outputs, [images.targets[index] for index in pieces])


def _learn(
    run: BlockRun, learning: Collection[_Learning], images: BlockImages, pieces: Sequence[int], settings: RoundingSpec
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []

    def loss() -> Tensor:
        if not order:
            order.extend(torch.randperm(len(pieces), generator=generator).tolist())
        index = pieces[order.pop()]
        target = images.targets[index]
        return (run(images.inputs[index], images.known[index]) - target).square().mean() / target.square().mean()

    groups = [
        {"params": [part.latent for part in learning if part.is_learned], "lr": settings.code_rate},
        {"params": [part.bias_steps for part in learning], "lr": settings.bias_rate},
    ]
    with run.dropping(settings.float_share, generator):
        descend(groups, settings.iterations, loss)


def _learns_codes(params: QuantParams) -> bool:
    """Whether codes can follow a gradient: their points lie about evenly."""
    return params.codebook is None or params.scheme is QuantizationScheme.NORMAL


def _by_element(values: Tensor, params: QuantParams, weight: Tensor) -> Tensor:
    """Scales or zero points in a shape that broadcasts to the weight."""
    if params.group_size is not None:
        return values.repeat_interleave(params.group_size, dim=1).reshape(weight.shape)
    return values.reshape(-1, *[1] * (weight.ndim - 1)) if params.axis is not None else values
