from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoquant.data import Transform
from evoquant.types.images import DataConfig

ImageMaker = Callable[..., Image.Image]


@pytest.fixture
def make_image() -> ImageMaker:
    def make(seed: int = 0, width: int = 40, height: int = 32, mode: str = "RGB") -> Image.Image:
        shape = (height, width) if mode == "L" else (height, width, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def small() -> Transform:
    return Transform(DataConfig((3, 16, 16), "bilinear", 1.0, (0.0,), (1.0,)))


@pytest.fixture
def folder(tmp_path: Path, make_image: ImageMaker) -> Path:
    """Twelve images in three class folders."""
    for index in range(12):
        path = tmp_path / "photos" / f"class_{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(index).save(path)
    return tmp_path / "photos"


@pytest.fixture
def jpeg_archive(tmp_path: Path, make_image: ImageMaker) -> Path:
    """Six JPEG files in one ``.npz``."""
    files = []
    for index in range(6):
        stream = io.BytesIO()
        make_image(index).save(stream, "JPEG")
        files.append(stream.getvalue())
    path = tmp_path / "six.npz"
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(6, dtype=np.uint8),
    )
    return path
