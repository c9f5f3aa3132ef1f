"""From an image to a model's input: resize, centre crop, scale to [0, 1], normalise.

The result equals that of timm's evaluation transform for the same settings. The geometric half works on PIL images and
yields bytes, which are what is kept in memory; the arithmetic half runs on each batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from evoquant.config import TransformSpec
from evoquant.errors import DataError
from evoquant.types.images import DataConfig

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Transform:
    """The preparation of images for one model.

    Attributes:
        config: Size, interpolation, crop and normalisation.

    Raises:
        DataError: If channels, mean and std do not fit together, or there is no such interpolation.
    """

    config: DataConfig

    def __post_init__(self) -> None:
        channels = self.config.input_size[0]
        if channels not in (1, 3):
            raise DataError(f"Images have 1 or 3 channels, but the model takes {channels}. Pass tensors instead.")
        for name in ("mean", "std"):
            values = getattr(self.config, name)
            if len(values) not in (1, channels):
                raise DataError(f"transform.{name} must have 1 or {channels} values, but got {values}.")
        if self.config.interpolation not in _RESAMPLING:
            known = ", ".join(_RESAMPLING)
            raise DataError(f"Interpolation must be one of {known}, but got '{self.config.interpolation}'.")
        if not 0 < self.config.crop_pct <= 1:
            raise DataError(f"crop_pct must lie in (0, 1], but got {self.config.crop_pct}.")

    @classmethod
    def of(cls, config: DataConfig, spec: TransformSpec | None = None, *, image_size: int | None = None) -> Self:
        """What the model was trained with, changed where ``spec`` or ``image_size`` says otherwise."""
        changes = {} if spec is None else spec.model_dump(exclude_none=True)
        if image_size is not None:
            changes["input_size"] = (config.input_size[0], image_size, image_size)
        return cls(replace(config, **changes))

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop one image.

        Returns:
            Bytes of shape (channels, height, width).
        """
        channels, height, width = self.config.input_size
        image = image.convert("L" if channels == 1 else "RGB")
        image = image.resize(self._resized(image.width, image.height), _RESAMPLING[self.config.interpolation])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Size (width, height) before the crop."""
        _, target_height, target_width = self.config.input_size
        scale_height = math.floor(target_height / self.config.crop_pct)
        scale_width = math.floor(target_width / self.config.crop_pct)
        if self.config.crop_mode == "squash":
            return scale_width, scale_height
        if scale_height == scale_width:
            if width <= height:
                return scale_width, int(scale_width * height / width)
            return int(scale_height * width / height), scale_height
        ratio = min(height / scale_height, width / scale_width)
        return round(width / ratio), round(height / ratio)

    def to_input(self, pixels: Tensor) -> Tensor:
        """Scale bytes to [0, 1] and normalise them.

        Bytes of another height and width are interpolated bilinearly after scaling; one channel is repeated where the
        model takes three.

        Args:
            pixels: uint8 of shape (n, channels, height, width).

        Returns:
            float32 of shape (n, *input_size).
        """
        channels, height, width = self.config.input_size
        images = pixels.to(torch.float32).div_(255)
        if images.shape[-2:] != (height, width):
            images = functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.config.mean, self.config.std))
        return images.expand(-1, channels, -1, -1).sub(mean).div_(std)
