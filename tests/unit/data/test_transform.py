"""The second implementation is timm's own evaluation transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from evoquant import models
from evoquant.config import TransformSpec
from evoquant.data import Transform
from evoquant.errors import DataError
from evoquant.types.images import DataConfig

from timm.data import create_transform  # isort: skip  (evoquant.models repairs the import of torchvision)

TOLERANCE = 1e-6


def ours(image: Image.Image, config: DataConfig) -> torch.Tensor:
    transform = Transform(config)
    return transform.to_input(torch.from_numpy(transform.to_pixels(image).copy())[None])[0]


def theirs(image: Image.Image, config: DataConfig) -> torch.Tensor:
    return create_transform(
        config.input_size,
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        mean=config.mean,
        std=config.std,
    )(image)


DEIT_TINY = DataConfig((3, 224, 224), "bicubic", 0.9)
MOBILENETV2 = DataConfig((3, 224, 224), "bilinear", 0.875)


@pytest.mark.parametrize("config", [DEIT_TINY, MOBILENETV2], ids=["deit_tiny", "mobilenetv2"])
@pytest.mark.parametrize(("width", "height"), [(299, 299), (384, 288), (288, 431), (50, 60), (248, 248)])
def test_equals_timm_for_the_real_models(make_image, config: DataConfig, width: int, height: int) -> None:
    image = make_image(1, width, height)
    assert torch.allclose(ours(image, config), theirs(image, config), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    size=st.tuples(st.just(3), st.integers(8, 40), st.integers(8, 40)) | st.integers(8, 40).map(lambda s: (3, s, s)),
    crop_pct=st.floats(0.5, 1.0),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    crop_mode=st.sampled_from(["center", "squash"]),
)
def test_equals_timm_for_any_size(width, height, size, crop_pct, interpolation, crop_mode) -> None:
    config = DataConfig(size, interpolation, crop_pct, crop_mode=crop_mode)
    image = Image.effect_noise((width, height), 80).convert("RGB")
    assert torch.allclose(ours(image, config), theirs(image, config), rtol=0, atol=TOLERANCE)


def test_cifar_images_are_resized_without_a_crop(make_image) -> None:
    image = make_image(3, 32, 32)
    config = DataConfig((3, 64, 64), "bilinear", 1.0, (0.0,), (1.0,))
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    expected = functional.interpolate(scaled, size=(64, 64), mode="bilinear", align_corners=False)[0]
    two_roundings = 2 * 0.5 / 255  # PIL rounds to bytes after each of its two passes
    assert (ours(image, config) - expected).abs().max() <= two_roundings + TOLERANCE


def test_grey_images_for_colour_models_and_back(make_image) -> None:
    grey = make_image(0, 16, 16, "L")
    colour = ours(grey, DataConfig((3, 16, 16), "bilinear", 1.0, (0.0,), (1.0,)))
    assert (colour[0] == colour[1]).all()
    assert (colour[0] == colour[2]).all()
    single = ours(grey, DataConfig((1, 16, 16), "bilinear", 1.0, (0.0,), (1.0,)))
    assert torch.equal(single[0], colour[0])


def test_settings_replace_those_of_the_model() -> None:
    base = DataConfig((3, 256, 256), "bicubic", 0.9)
    assert Transform.of(base).config == base
    spec = TransformSpec(interpolation="bilinear", crop_pct=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    changed = Transform.of(base, spec, image_size=64).config
    assert changed == DataConfig((3, 64, 64), "bilinear", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig((4, 8, 8)), r"1 or 3 channels, but the model takes 4"),
        (DataConfig((3, 8, 8), mean=(0.0, 0.0)), r"transform\.mean must have 1 or 3 values, but got \(0\.0, 0\.0\)"),
        (DataConfig((1, 8, 8)), r"transform\.mean must have 1 or 1 values"),
        (DataConfig((3, 8, 8), crop_pct=1.5), r"crop_pct must lie in \(0, 1\], but got 1\.5"),
        (DataConfig((3, 8, 8), "cubic"), r"Interpolation must be one of .* but got 'cubic'"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings(config: DataConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Transform(config)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilevit_micro", DataConfig((1, 32, 32), "bilinear", 1.0, (0.0,), (1.0,))),
        ("mobilevit_xxs", DataConfig((3, 256, 256), "bicubic", 0.9, (0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_models_say_how_they_want_images(name: str, expected: DataConfig) -> None:
    assert models.data_config(models.create(name)) == expected


def test_a_module_without_settings() -> None:
    with pytest.raises(models.ModelError, match="Linear does not say how its images are prepared"):
        models.data_config(torch.nn.Linear(1, 1))
