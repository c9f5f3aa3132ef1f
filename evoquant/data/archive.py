"""Images in one ``.npz`` file: concatenated JPEG files, or an array of bytes."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evoquant.data.listing import ImageListing
from evoquant.data.source import checked_images
from evoquant.errors import DataError


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file.

    Raises:
        DataError: If it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of images. Check data.*.images.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cannot be read as .npz: it is not a zip file, or is cut off.")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error


def list_archive(path: Path) -> ImageListing:
    """List the images of an ``.npz`` file.

    It holds either ``jpeg`` (all files' bytes, concatenated) with ``offsets`` (n + 1), or ``images`` (uint8 of shape
    (n, height, width) or (n, height, width, channels)); and ``labels`` (n), if there are any.

    Raises:
        DataError: If it cannot be read, or its arrays do not fit together.
    """
    arrays = read_archive(path)
    if {"jpeg", "offsets"} <= arrays.keys():
        count = len(arrays["offsets"]) - 1
        open_image = _jpeg_opener(path, arrays["jpeg"], arrays["offsets"])
    elif "images" in arrays:
        try:
            images = checked_images(arrays["images"])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        count = len(images)

        def open_image(index: int) -> Image.Image:
            return Image.fromarray(images[index])

    else:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path}: expected the arrays jpeg and offsets, or images, but got {found}.")
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(f"{path}: expected {count} integer labels, but got {labels.dtype} {labels.shape}.")
    names = tuple(f"{path.name}[{index}]" for index in range(count))
    return ImageListing(str(path), names, None if labels is None else tuple(labels.tolist()), open_image)


def _jpeg_opener(path: Path, data: NDArray[Any], offsets: NDArray[Any]) -> Callable[[int], Image.Image]:
    is_sound = data.dtype == np.uint8 and data.ndim == 1 and offsets.ndim == 1 and len(offsets) > 1
    is_sound = is_sound and np.issubdtype(offsets.dtype, np.integer)
    if not is_sound or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: offsets must be increasing integers within the {len(data)} bytes of jpeg.")

    def open_image(index: int) -> Image.Image:
        return Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]].tobytes()))

    return open_image
