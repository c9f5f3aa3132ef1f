"""A set of images in memory, handed out in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evoquant.data.transform import Transform
from evoquant.errors import DataError

_DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class ImageBatchSource:
    """Images, their labels and their identity. Batches may be taken from several threads at once.

    Images are kept as bytes (a thousand of 3x224x224 take 150 MB) and normalised batch by batch; images that came as
    finished tensors are kept as they are.

    Attributes:
        pixels: uint8 of shape (n, channels, height, width), or float32 if ``transform`` is None.
        labels: int64 of shape (n,), or None.
        names: For messages, one for each image.
        transform: Makes inputs from bytes; None if ``pixels`` are inputs.
        skipped: Names of images that could not be read and were left out.
    """

    pixels: Tensor
    labels: Tensor | None
    names: tuple[str, ...]
    transform: Transform | None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or len(self.pixels) == 0:
            raise DataError(
                f"Expected images of shape (n, channels, height, width), but got {tuple(self.pixels.shape)}."
            )
        for name, values in (("labels", self.labels), ("names", self.names)):
            if values is not None and len(values) != len(self.pixels):
                raise DataError(f"Expected as many {name} as images, {len(self.pixels)}, but got {len(values)}.")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, batch size 1."""
        shape = self.pixels.shape[1:] if self.transform is None else self.transform.config.input_size
        return (1, *shape)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Inputs of the model, float32 of shape (batch, channels, height, width), in order; the last may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.inputs(start, start + batch_size)

    def inputs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The inputs of images ``start`` to ``stop`` in one tensor."""
        pixels = self.pixels[start:stop]
        return pixels if self.transform is None else self.transform.to_input(pixels)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """A digest of each image as it is kept; equal images have equal digests."""
        return tuple(_digest(image.numpy()) for image in self.pixels)

    @cached_property
    def content_hash(self) -> str:
        """Digest of all images in their order, of their preparation and of their labels."""
        parts = [*self.digests, repr(self.transform), "" if self.labels is None else str(self.labels.tolist())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_labels(self, num_classes: int) -> None:
        """Make sure that every image has a label the model can give.

        Raises:
            DataError: If labels are missing or lie outside ``[0, num_classes)``; the message names the first.
        """
        if self.labels is None:
            raise DataError(
                f"The {len(self)} images from '{self.names[0]}' on have no labels. "
                "Name a CSV file with the columns file and label, or put them into class folders."
            )
        wrong = ((self.labels < 0) | (self.labels >= num_classes)).nonzero().flatten().tolist()
        if wrong:
            raise DataError(
                f"Labels must lie in [0, {num_classes - 1}], the classes of the model, but {len(wrong)} of {len(self)} "
                f"do not; the first is {int(self.labels[wrong[0]])} of '{self.names[wrong[0]]}'."
            )

    @classmethod
    def from_arrays(
        cls, images: NDArray[np.uint8], labels: NDArray[np.integer] | None = None, *, transform: Transform
    ) -> Self:
        """Prepare images that are in memory.

        Args:
            images: Bytes of shape (n, height, width), (n, height, width, 1) or (n, height, width, 3).
            labels: Integers of shape (n,).
            transform: How images are prepared.

        Raises:
            DataError: If the arrays have other shapes or types.
        """
        images = checked_images(images)
        pixels = np.stack([transform.to_pixels(Image.fromarray(image)) for image in images])
        return cls(torch.from_numpy(pixels), _as_labels(labels), _numbered(len(images)), transform)

    @classmethod
    def from_batches(cls, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, count: int | None = None) -> Self:
        """Keep finished inputs, for example those of a ``DataLoader``.

        Args:
            batches: Normalised inputs of shape (batch, channels, height, width), or pairs of inputs and labels.
            count: How many images to take; None: all.

        Raises:
            DataError: If there is no batch, or shapes differ, or only some have labels.
        """
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in batches:
            if count is not None and sum(map(len, inputs)) >= count:
                break
            images, label = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
            inputs.append(images.detach().to("cpu", torch.float32))
            labels += [] if label is None else [label.detach().to("cpu", torch.int64)]
        if not inputs:
            raise DataError("Expected at least one batch of images, but got none. Is the loader exhausted?")
        if len(labels) not in (0, len(inputs)):
            raise DataError(f"Labels came with {len(labels)} of {len(inputs)} batches; give them with all or none.")
        shapes = {tuple(batch.shape[1:]) for batch in inputs}
        if len(shapes) > 1:
            raise DataError(f"All images must have one shape, but got {', '.join(map(str, sorted(shapes)))}.")
        pixels = torch.cat(inputs)[:count]
        return cls(pixels, torch.cat(labels)[:count] if labels else None, _numbered(len(pixels)), None)


def check_disjoint(**sources: ImageBatchSource) -> None:
    """Make sure that no image is in two of the named sets.

    Raises:
        DataError: If one is; the message counts them and names an example.
    """
    owner: dict[str, tuple[str, str]] = {}
    for split, source in sources.items():
        shared = [
            (name, *owner[digest])
            for name, digest in zip(source.names, source.digests, strict=True)
            if owner.get(digest, (split,))[0] != split
        ]
        if shared:
            name, other_split, other_name = shared[0]
            raise DataError(
                f"Images for {other_split} and {split} must differ, but {len(shared)} of {len(source)} {split} images "
                f"are in both; for example '{name}' of {split} is '{other_name}' of {other_split}. "
                "Give other folders, or the same seed and offsets that do not overlap."
            )
        owner |= {digest: (split, name) for name, digest in zip(source.names, source.digests, strict=True)}


def checked_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of shape (n, height, width) or (n, height, width, 3).

    Raises:
        DataError: If they are something else.
    """
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            "Expected uint8 images of shape (n, height, width) or (n, height, width, 3), but got "
            f"{images.dtype} {images.shape}."
        )
    if len(images) == 0:
        raise DataError("Expected at least one image, but got an empty array.")
    return images


def _as_labels(labels: NDArray[np.integer] | None) -> Tensor | None:
    return None if labels is None else torch.from_numpy(np.asarray(labels).astype(np.int64))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"image {index}" for index in range(count))


def _digest(pixels: NDArray[np.generic]) -> str:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
