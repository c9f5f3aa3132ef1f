"""Tuning: scales of rows and biases of a whole plan, at once, by what the floating-point model answers.

Weights that are fitted one after the other each make good their own loss, in squares of their output. Here the few
numbers that may have any value follow the divergence of the class probabilities, codes staying as they are. No labels
are needed, so random changes of a few calibration images give as many targets as there are steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from evoquant.calibrate.augment import augmented
from evoquant.calibrate.block_run import BlockRun, Originals, Quantizers, WeightPart
from evoquant.calibrate.compensate import QuantizedWeight, has_scales_of_rows
from evoquant.calibrate.descent import descend
from evoquant.calibrate.fisher import TEMPERATURE
from evoquant.calibrate.segment import whole_network
from evoquant.config.quantizers import TuningSpec
from evoquant.graph import CapturedModel
from evoquant.quant import fake_quantize


class _TunedWeight(WeightPart):
    """Codes that stay, with a factor of the scales of each row."""

    def __init__(self, stored: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__(stored, bias)
        self.is_scaled = has_scales_of_rows(stored.params)
        self.log_factor = torch.zeros(len(stored.weight), requires_grad=self.is_scaled)

    def weight(self) -> Tensor:
        """The quantized weight; its gradient goes to the factors."""
        stored = self.stored.weight
        return stored * self.log_factor.exp().reshape(-1, *[1] * (stored.ndim - 1))

    def result(self) -> QuantizedWeight:
        """What was tuned, as values."""
        with torch.no_grad():
            weight, params = self.stored.weight, self.stored.params
            if self.is_scaled:
                by_row = params.scale.reshape(len(weight), -1) * self.log_factor.exp()[:, None]
                params = replace(params, scale=by_row.reshape(params.scale.shape))
                weight = fake_quantize(self.weight(), params)
            steps = (*self.stored.steps, "tuned")
            return replace(self.stored, weight=weight, params=params, bias=self.bias().clone(), steps=steps)


def tune(
    captured: CapturedModel,
    weights: Mapping[str, QuantizedWeight],
    quantizers: Quantizers,
    images: Tensor,
    settings: TuningSpec,
) -> dict[str, QuantizedWeight]:
    """Tune the weights of a plan.

    Args:
        captured: The floating-point model; not changed.
        weights: Quantized weights to start from; operations without one stay float.
        quantizers: Of the activations.
        images: What is learned from, (images, channels, height, width).
        settings: Steps and rates.

    Returns:
        The same weights, tuned.

    References:
        L. Li et al., "Norm Tweaking", AAAI 2024, https://arxiv.org/abs/2309.02784: few parameters, no labels.
        M. Chen et al., "EfficientQAT", 2024, https://arxiv.org/abs/2407.11062, section 3.3: scales of a whole network
        trained over codes that stay.
    """
    originals: Originals = {
        op.name: (weight, captured.bias(op.name))
        for op in captured.graph.ops
        if (weight := captured.weight(op.name)) is not None
    }
    parts = {name: _TunedWeight(stored, captured.bias(name)) for name, stored in weights.items()}
    run = BlockRun(whole_network(captured), parts, originals, quantizers)
    generator = torch.Generator().manual_seed(settings.seed)
    batches = _batches(images, settings.batch_size, generator)
    with torch.no_grad():
        run(images[: settings.batch_size], {})  # sets the units of the biases

    def loss() -> Tensor:
        batch = next(batches)
        with torch.no_grad():
            target = (captured(batch) / TEMPERATURE).log_softmax(1).clone()
        answer = (run(batch, {}) / TEMPERATURE).log_softmax(1)
        return F.kl_div(answer, target, log_target=True, reduction="batchmean") * TEMPERATURE**2

    groups = [
        {"params": [part.log_factor for part in parts.values() if part.is_scaled], "lr": settings.scale_rate},
        {"params": [part.bias_steps for part in parts.values()], "lr": settings.bias_rate},
    ]
    descend([group for group in groups if group["params"]], settings.steps, loss)
    return {name: part.result() for name, part in parts.items()}


def _batches(images: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless random changes of images, each image once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(images), generator=generator).tolist()
        yield augmented(images[order[:size]], generator)
        order = order[size:]
