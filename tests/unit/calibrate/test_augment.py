"""Random changes of images repeat, keep the shape, and invent no values."""

import torch

from evoquant.calibrate.augment import augmented


def test_changes_repeat_and_stay_in_the_range_of_the_images():
    images = torch.rand(12, 3, 20, 28, generator=torch.Generator().manual_seed(0)) + 1
    first, second = (augmented(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert float(first.min()) >= 1
    assert float(first.max()) <= 2
    assert not torch.equal(first, augmented(images, torch.Generator().manual_seed(2)))


def test_an_even_image_stays_as_it_is():
    images = torch.full((4, 1, 8, 8), 0.5)
    torch.testing.assert_close(augmented(images, torch.Generator().manual_seed(0)), images)


def test_a_crop_keeps_left_of_right_unless_it_is_flipped():
    """Along a ramp a crop is a ramp that is at most as steep, in either direction."""
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    generator = torch.Generator().manual_seed(3)
    slopes = torch.stack([augmented(ramp, generator).diff(dim=-1).mean() for _ in range(40)]) * 63 / 2
    assert (slopes > 0.3).any()
    assert (slopes < -0.3).any()
    assert float(slopes.abs().max()) <= 1 + 1e-5
