"""How a model wants its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CropMode = Literal["center", "squash"]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The preparation of images that a model was trained with.

    Attributes:
        input_size: (channels, height, width) of one input.
        interpolation: Of the resize.
        crop_pct: Share of the resized image that the crop keeps.
        mean: Subtracted from each channel, in units of [0, 1].
        std: Divides each channel.
        crop_mode: ``center`` keeps the aspect ratio and crops the middle; ``squash`` resizes both sides alike first.
    """

    input_size: tuple[int, int, int]
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 0.875
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_mode: CropMode = "center"
