from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from evoquant import resources
from evoquant.config import ImageSet
from evoquant.data import ImageBatchSource, Transform, check_disjoint, load_images
from evoquant.errors import DataError
from evoquant.types.images import DataConfig

NOISE = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)


def test_arrays(small: Transform) -> None:
    source = ImageBatchSource.from_arrays(NOISE, np.arange(8), transform=small)
    expected = torch.from_numpy(NOISE).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(source.inputs(), expected)
    assert torch.equal(source.inputs(2, 5), expected[2:5])
    assert source.names[2] == "image 2"
    with pytest.raises(DataError, match=r"Expected uint8 images .* but got float32"):
        ImageBatchSource.from_arrays(NOISE.astype(np.float32), transform=small)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Expected as many labels as images, 8, but got 3"):
        ImageBatchSource.from_arrays(NOISE, np.arange(3), transform=small)


def test_batches_of_tensors() -> None:
    images = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = [(images[:4], torch.arange(4)), (images[4:], torch.arange(4, 7))]
    source = ImageBatchSource.from_batches(pairs, count=6)
    assert torch.equal(source.inputs(), images[:6])
    assert source.labels is not None
    assert source.labels.tolist() == list(range(6))
    assert [len(batch) for batch in source.batches(4)] == [4, 2]
    assert source.input_shape == (1, 3, 4, 4)
    assert ImageBatchSource.from_batches(iter([images])).labels is None


def test_an_endless_loader_is_not_drained() -> None:
    def endless():
        while True:
            yield torch.zeros(2, 1, 2, 2)

    assert len(ImageBatchSource.from_batches(endless(), count=5)) == 5


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"at least one batch of images, but got none"),
        ([torch.zeros(0, 3, 4, 4)], r"Expected images of shape .* but got \(0, 3, 4, 4\)"),
        ([torch.zeros(3, 4, 4)], r"Expected images of shape .* but got \(3, 4, 4\)"),
        ([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)], r"one shape, but got \(3, 4, 4\), \(3, 4, 5\)"),
        ([(torch.zeros(1, 3, 4, 4), torch.zeros(1)), torch.zeros(1, 3, 4, 4)], r"Labels came with 1 of 2 batches"),
    ],
)
def test_bad_batches(batches: list[torch.Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageBatchSource.from_batches(batches)


def test_the_hash_knows_pixels_labels_order_and_preparation(small: Transform) -> None:
    def content_hash(images: np.ndarray, labels: np.ndarray | None = None, transform: Transform = small) -> str:
        return ImageBatchSource.from_arrays(images, labels, transform=transform).content_hash

    changed = NOISE.copy()
    changed[3, 2, 1, 0] ^= 1
    other = Transform(DataConfig((3, 16, 16), "bilinear", 1.0, (0.5,), (1.0,)))
    hashes = [
        content_hash(NOISE),
        content_hash(changed),
        content_hash(NOISE[::-1].copy()),
        content_hash(NOISE, np.arange(8)),
        content_hash(NOISE, None, other),
    ]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(NOISE.copy()) == hashes[0]


def test_overlapping_sets_are_refused(folder: Path, small: Transform) -> None:
    def part(offset: int, count: int) -> ImageBatchSource:
        return load_images(ImageSet(images=str(folder), offset=offset, count=count, seed=None), small)

    check_disjoint(calibration=part(0, 4), selection=part(4, 4), test=part(8, 4))
    with pytest.raises(
        DataError,
        match=r"calibration and test must differ, but 2 of 4 test images .* 'class_0/06\.png' of test is 'class_0/06",
    ):
        check_disjoint(calibration=part(0, 4), selection=part(6, 4), test=part(2, 4))


def test_copies_under_other_names_are_found_and_repeats_within_a_set_are_not(folder: Path, small: Transform) -> None:
    for path in folder.rglob("*.png"):
        path.with_name("copy_" + path.name).write_bytes(path.read_bytes())
    source = load_images(ImageSet(images=str(folder), seed=None), small)
    check_disjoint(calibration=source)
    copies = load_images(ImageSet(images=str(folder), seed=None, offset=20), small)
    originals = load_images(ImageSet(images=str(folder), seed=None, offset=16, count=4), small)
    with pytest.raises(DataError, match=r"'class_2/copy_02\.png' of test is 'class_2/02\.png' of selection"):
        check_disjoint(selection=originals, test=copies)


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    arrays = {
        f"{split}_{kind}": generator.integers(0, 10 if kind == "labels" else 256, shape, dtype=np.uint8)
        for split in ("calibration", "selection")
        for kind, shape in (("images", (6, 28, 28)), ("labels", (6,)))
    }
    np.savez_compressed(tmp_path / "images.npz", **arrays)  # type: ignore[arg-type]
    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / name / "..")
    (tmp_path / "embedded").mkdir()
    return arrays


def test_embedded_images_are_resized_as_in_training(embedded: dict[str, np.ndarray]) -> None:
    transform = Transform(DataConfig((1, 32, 32), "bilinear", 1.0, (0.0,), (1.0,)))
    source = load_images(ImageSet(images="embedded:selection", offset=1, count=3, seed=None), transform, num_classes=10)
    scaled = torch.from_numpy(embedded["selection_images"][1:4])[:, None].float() / 255
    expected = functional.interpolate(scaled, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(source.inputs(), expected)
    assert source.labels is not None
    assert source.labels.tolist() == embedded["selection_labels"][1:4].tolist()
    colour = Transform(DataConfig((3, 32, 32), "bilinear", 1.0, (0.0,), (1.0,)))
    assert load_images(ImageSet(images="embedded:selection"), colour).inputs().shape == (6, 3, 32, 32)


def test_a_missing_embedded_split(embedded: dict[str, np.ndarray], small: Transform, tmp_path: Path) -> None:
    assert embedded
    with pytest.raises(DataError, match=r"there is no split 'test', only calibration_images"):
        load_images(ImageSet(images="embedded:test"), small)
    (tmp_path / "images.npz").unlink()
    with pytest.raises(DataError, match=r"images\.npz: the embedded images are missing from this installation"):
        load_images(ImageSet(images="embedded:test"), small)
