"""What an image folder or file holds, before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from evoquant.config import ImageSet
from evoquant.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageListing:
    """The images of one folder or file, in file order.

    Attributes:
        where: The folder or file.
        names: One for each image.
        labels: One for each image, or None.
        open_image: Opens image number i; decoding may be put off until its pixels are asked for.
    """

    where: str
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    open_image: Callable[[int], Image.Image]


def chosen(image_set: ImageSet, available: int) -> list[int]:
    """Numbers of the images of a set: permuted by its seed, then from ``offset`` on, ``count`` of them.

    Raises:
        DataError: If there are fewer.
    """
    if available == 0:
        raise DataError(f"{image_set.images}: there are no images.")
    order = range(available)
    if image_set.seed is not None:
        order = np.random.default_rng(image_set.seed).permutation(available).tolist()
    stop = available if image_set.count is None else image_set.offset + image_set.count
    if image_set.offset >= available or stop > available:
        asked = "at least one" if image_set.count is None else image_set.count
        raise DataError(
            f"{image_set.images}: expected {asked} images from offset {image_set.offset} on, but there are {available} "
            "in all. Lower count or offset."
        )
    return list(order[image_set.offset : stop])
