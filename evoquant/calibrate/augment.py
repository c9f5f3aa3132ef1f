"""Endless images from a few: random crops, flips and mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_AREA = 0.4
"""Share of the image that a crop has at least."""

GREATEST_ASPECT = 4 / 3
"""Greatest ratio of width to height of a crop, and of height to width, relative to the image."""

MIXED_SHARE = 0.5
"""Share of the images that another one is mixed into, at most half of it."""

CHANGES = 2
"""Random changes of each held-out image that judge beside it: a few images with great divergences decide else."""


def with_changes(images: Tensor) -> Tensor:
    """Images and random changes of them, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([images, *(augmented(images, generator) for _ in range(CHANGES))])


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images of the same shape: each a crop at the size of the original, perhaps flipped, perhaps mixed with the next.

    Args:
        images: Float32, (images, channels, height, width).
        generator: Makes it repeat.
    """

    def random() -> Tensor:
        return torch.rand(len(images), generator=generator)

    side = (LEAST_AREA + (1 - LEAST_AREA) * random()).sqrt()
    aspect = torch.exp((random() - 0.5) * math.log(GREATEST_ASPECT))  # the root of width over height
    width, height = (side * aspect).clamp(max=1.0), (side / aspect).clamp(max=1.0)
    sign = torch.where(random() < 0.5, -1.0, 1.0)
    place = torch.zeros(len(images), 2, 3)
    place[:, 0, 0], place[:, 0, 2] = sign * width, (2 * random() - 1) * (1 - width)
    place[:, 1, 1], place[:, 1, 2] = height, (2 * random() - 1) * (1 - height)
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    crops = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    share = torch.where(random() < MIXED_SHARE, 0.5 * random(), 0.0)
    return torch.lerp(crops, crops.roll(1, 0), share[:, None, None, None])
