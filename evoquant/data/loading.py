"""Loading an image set: list, choose, decode in threads, keep as bytes."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evoquant.config import EMBEDDED, ImageSet
from evoquant.data.archive import list_archive
from evoquant.data.embedded import load_embedded
from evoquant.data.folder import list_folder
from evoquant.data.listing import ImageListing, chosen
from evoquant.data.source import ImageBatchSource
from evoquant.data.transform import Transform
from evoquant.errors import DataError

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_MOST_NAMED = 5


def load_images(
    image_set: ImageSet,
    transform: Transform,
    *,
    unreadable: Literal["refuse", "skip"] = "refuse",
    num_classes: int | None = None,
    threads: int | None = None,
) -> ImageBatchSource:
    """Load a set of images into memory.

    Args:
        image_set: Which images.
        transform: How they are prepared.
        unreadable: Whether images that cannot be decoded are an error, or are left out and named in ``skipped``.
        num_classes: If given, every image must have a label below it.
        threads: Threads that decode; None: one for each core.

    Raises:
        DataError: If the folder or file is missing or empty, an image cannot be read, or a label is missing or out of
            range.
    """
    if image_set.images.startswith(EMBEDDED):
        source = load_embedded(image_set, transform)
    else:
        source = _load_listing(_listed(image_set), image_set, transform, unreadable, threads or os.cpu_count() or 1)
    if num_classes is not None:
        source.check_labels(num_classes)
    return source


def _listed(image_set: ImageSet) -> ImageListing:
    path = Path(image_set.images)
    if path.is_dir():
        return list_folder(path, image_set.labels)
    if path.suffix == ".npz":
        if image_set.labels is not None:
            raise DataError(f"{path}: an .npz file holds its own labels; remove labels: {image_set.labels}.")
        return list_archive(path)
    found = "it is a file" if path.exists() else "there is none"
    raise DataError(f"{path}: expected a folder of images or an .npz file, but {found}. Check data.*.images.")


def _load_listing(
    listing: ImageListing, image_set: ImageSet, transform: Transform, unreadable: str, threads: int
) -> ImageBatchSource:
    numbers = chosen(image_set, len(listing.names))

    def decode(number: int) -> NDArray[np.uint8] | str:
        """The pixels of one image, or why there are none."""
        try:
            with listing.open_image(number) as image:
                return transform.to_pixels(image)
        except _UNREADABLE as error:
            return str(error) or type(error).__name__

    pixels = np.empty((len(numbers), *transform.config.input_size), np.uint8)
    read: list[int] = []
    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for number, result in zip(numbers, pool.map(decode, numbers), strict=True):
            if isinstance(result, str):
                reasons[listing.names[number]] = result
            else:
                pixels[len(read)] = result
                read.append(number)
    if reasons and (unreadable == "refuse" or not read):
        raise DataError(_unreadable_message(listing, reasons, len(numbers)))
    labels = None if listing.labels is None else torch.tensor([listing.labels[number] for number in read])
    names = tuple(listing.names[number] for number in read)
    return ImageBatchSource(torch.from_numpy(pixels[: len(read)]), labels, names, transform, tuple(reasons))


def _unreadable_message(listing: ImageListing, reasons: dict[str, str], count: int) -> str:
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:_MOST_NAMED]]
    if len(reasons) > _MOST_NAMED:
        lines.append(f"  ... and {len(reasons) - _MOST_NAMED} more")
    head = f"{listing.where}: {len(reasons)} of {count} images cannot be read:"
    return "\n".join([head, *lines, "Replace them, or set data.unreadable: skip."])
