"""The images that travel with the package: Fashion-MNIST, 28x28, one channel, three disjoint splits.

``embedded/images.npz`` holds ``{split}_images`` (uint8 of shape (n, 28, 28)) and ``{split}_labels`` (uint8) for the
splits ``calibration``, ``selection`` and ``test``. They are resized as in training: bilinearly, after scaling to
[0, 1].

References:
    H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
    arXiv:1708.07747.
"""

from __future__ import annotations

import torch

from evoquant import resources
from evoquant.config import EMBEDDED, ImageSet
from evoquant.data.archive import read_archive
from evoquant.data.listing import chosen
from evoquant.data.source import ImageBatchSource, checked_images
from evoquant.data.transform import Transform
from evoquant.errors import DataError

FOLDER = "embedded"


def load_embedded(image_set: ImageSet, transform: Transform) -> ImageBatchSource:
    """Load a split that ships with the package; ``image_set.images`` is ``embedded:SPLIT``.

    Raises:
        DataError: If the package was built without it, or has fewer images than asked for.
    """
    split = image_set.images.removeprefix(EMBEDDED)
    path = resources.folder(FOLDER) / "images.npz"
    if not path.is_file():
        raise DataError(f"{path}: the embedded images are missing from this installation. Install the wheel again.")
    arrays = read_archive(path)
    if not {f"{split}_images", f"{split}_labels"} <= arrays.keys():
        raise DataError(f"{path}: there is no split '{split}', only {', '.join(sorted(arrays))}.")
    images, labels = checked_images(arrays[f"{split}_images"]), arrays[f"{split}_labels"]
    numbers = chosen(image_set, len(images))
    return ImageBatchSource(
        torch.from_numpy(images[numbers])[:, None],
        torch.from_numpy(labels[numbers].astype("int64")),
        tuple(f"{image_set.images}[{number}]" for number in numbers),
        transform,
    )
