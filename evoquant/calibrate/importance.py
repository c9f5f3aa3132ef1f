"""How much each position of an output matters: a token that the classes are read from counts more than the others.

The error that rounding a weight makes is a mean over images and positions. The divergence of the class probabilities
grows by E[(g·ΔO)²] with the gradient g of the Fisher form, so a position counts with the square of its gradient. Few
images tell that with much noise, so a share of every weight stays equal.

References:
    J. Kim et al., "GuidedQuant: Large Language Model Quantization via Exploiting End Loss Guidance", ICML 2025,
    https://arxiv.org/abs/2505.07004: second moments of inputs weighted with squared gradients of outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from evoquant.calibrate.fisher import GradientPass, gradient_of
from evoquant.graph import CapturedModel
from evoquant.types import OpKind

DIRECTIONS = 2
"""Random directions of the Fisher form for each image."""

GRADIENT_BATCH = 8
"""Images of one backward pass."""

Importance = Mapping[str, Tensor]
"""By operation with a weight: of its output without the channels, (images, height, width) for a convolution and
(images, positions) for a linear layer; the mean is 1."""


def position_importance(
    captured: CapturedModel, batches: Iterable[Tensor], share: float, *, seed: int = 0
) -> Importance:
    """Importance of all positions of the outputs of all operations with a weight.

    Args:
        captured: The floating-point model.
        batches: Images, batch on axis 0.
        share: How much of it follows the squared gradient, in [0, 1]; the rest is the same everywhere. 0 takes no
            gradient, and returns nothing.
        seed: Of the random directions.
    """
    if not share:
        return {}
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    for images in batches:
        for batch in torch.split(images, GRADIENT_BATCH):
            for name, squares in _squared_gradients(captured, batch, generator).items():
                found.setdefault(name, []).append(squares)
    return {name: _mixed(torch.cat(parts), share) for name, parts in found.items()}


def _squared_gradients(captured: CapturedModel, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    run = GradientPass(captured, images)
    total: dict[str, Tensor] = {}
    for _ in range(DIRECTIONS):
        run.back(generator)
        for name, output in run.outputs.items():
            is_convolution = captured.graph.op[name].kind is OpKind.CONV
            squares = gradient_of(output).square().sum(1 if is_convolution else -1)
            if not is_convolution:  # windows and patches may be beside the images on axis 0
                squares = squares.reshape(len(images), -1)
            total[name] = total[name] + squares if name in total else squares
    return total


def _mixed(squares: Tensor, share: float) -> Tensor:
    mean = squares.mean()
    return 1 - share + share * squares / mean if mean > 0 else torch.ones_like(squares)
