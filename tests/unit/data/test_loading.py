from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evoquant.config import ImageSet
from evoquant.data import Transform, load_images
from evoquant.errors import DataError


def in_order(images: Path, **values: object) -> ImageSet:
    return ImageSet(images=str(images), seed=None, **values)  # type: ignore[arg-type]


def test_class_folders_are_labels_in_alphabetical_order(folder: Path, small: Transform) -> None:
    source = load_images(in_order(folder), small, num_classes=3)
    assert source.names[:5] == (
        "class_0/00.png",
        "class_0/03.png",
        "class_0/06.png",
        "class_0/09.png",
        "class_1/01.png",
    )
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.input_shape == (1, 3, 16, 16)
    assert [len(batch) for batch in source.batches(5)] == [5, 5, 2]
    with Image.open(folder / "class_1/01.png") as image:
        assert np.array_equal(source.pixels[4].numpy(), small.to_pixels(image))
    assert torch.equal(torch.cat(list(source.batches(5))), small.to_input(source.pixels))


def test_the_seed_permutes_and_offsets_do_not_overlap(folder: Path, small: Transform) -> None:
    def names(**values: int) -> tuple[str, ...]:
        return load_images(ImageSet(images=str(folder), **values), small).names

    everything = names(seed=3)
    assert everything == names(seed=3)
    assert sorted(everything) == sorted(names(seed=4))
    assert everything != names(seed=4)
    assert names(seed=3, count=5) + names(seed=3, offset=5, count=7) == everything


@pytest.mark.parametrize("place", ["beside", "inside", "named"])
def test_a_csv_gives_labels(folder: Path, small: Transform, place: str) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    start = "photos/" if place == "beside" else ""
    path = {"beside": folder.parent / "l.csv", "inside": folder / "labels.csv", "named": folder.parent / "x.csv"}[place]
    path.write_text("file,label\n" + "\n".join(f"{start}{name},{i + 5}" for i, name in enumerate(names)))
    source = load_images(in_order(folder, labels=None if place == "inside" else path), small)
    assert source.labels is not None
    assert source.labels.tolist() == list(range(5, 17))


def test_a_flat_folder_has_no_labels(tmp_path: Path, make_image, small: Transform) -> None:
    make_image().save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    assert load_images(in_order(tmp_path), small).labels is None
    with pytest.raises(DataError, match=r"The 1 images from 'a\.png' on have no labels\. Name a CSV"):
        load_images(in_order(tmp_path), small, num_classes=3)


def test_unreadable_images_are_named(folder: Path, small: Transform) -> None:
    (folder / "class_1" / "01.png").write_bytes(b"no image at all")
    whole = (folder / "class_2" / "05.png").read_bytes()
    (folder / "class_2" / "05.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read:\n  class_1/01\.png: cannot identify") as info:
        load_images(in_order(folder), small)
    assert "class_2/05.png: " in str(info.value)
    assert "set data.unreadable: skip" in str(info.value)
    source = load_images(in_order(folder), small, unreadable="skip")
    assert source.skipped == ("class_1/01.png", "class_2/05.png")
    assert len(source) == len(source.names) == 10
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3


def test_many_unreadable_images_fit_on_a_screen(tmp_path: Path, small: Transform) -> None:
    for index in range(40):
        (tmp_path / f"{index:02d}.jpg").write_bytes(b"x")
    for setting in ("refuse", "skip"):
        with pytest.raises(DataError, match=r"40 of 40 images cannot be read[\s\S]*\.\.\. and 35 more") as info:
            load_images(in_order(tmp_path), small, unreadable=setting)  # type: ignore[arg-type]
        assert len(str(info.value).splitlines()) == 8


def test_jpeg_archives(jpeg_archive: Path, small: Transform) -> None:
    source = load_images(in_order(jpeg_archive, offset=2), small, num_classes=6)
    assert source.labels is not None
    assert source.labels.tolist() == [2, 3, 4, 5]
    assert source.names[0] == "six.npz[2]"


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 16, 16, 1), (4, 16, 16, 3)])
def test_array_archives(tmp_path: Path, small: Transform, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([3, 2, 1, 0]))
    source = load_images(in_order(tmp_path / "a.npz"), small)
    expected = np.broadcast_to(images.reshape(4, 16, 16, -1), (4, 16, 16, 3)).transpose(0, 3, 1, 2)
    assert np.array_equal(source.pixels.numpy(), expected)


def save(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


BYTES = np.zeros(10, np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": BYTES}, r"expected the arrays jpeg and offsets, or images, but got x"),
        ({"images": np.zeros((2, 4, 4))}, r"Expected uint8 images of shape .* but got float64 \(2, 4, 4\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, r"got an empty array"),
        ({"jpeg": BYTES, "offsets": np.array([0, 5, 11])}, r"increasing integers within the 10 bytes"),
        ({"jpeg": BYTES, "offsets": np.array([0, 5, 3])}, r"increasing integers within the 10 bytes"),
        ({"jpeg": BYTES, "offsets": np.array([0])}, r"increasing integers within the 10 bytes"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.arange(3)},
            r"expected 2 integer labels, but got int64 \(3,\)",
        ),
        ({"images": np.array([{}], dtype=object)}, r"a\.npz: cannot be read as \.npz"),
    ],
)
def test_bad_archives(tmp_path: Path, small: Transform, arrays: dict[str, object], message: str) -> None:
    save(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(in_order(tmp_path / "a.npz"), small)


def test_an_archive_that_is_none(tmp_path: Path, small: Transform) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as \.npz"):
        load_images(in_order(tmp_path / "a.npz"), small)
    (tmp_path / "b.npz").write_bytes(b"text")
    with pytest.raises(DataError, match=r"b\.npz: cannot be read as \.npz"):
        load_images(in_order(tmp_path / "b.npz"), small)
    np.save(tmp_path / "c", BYTES)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    with pytest.raises(DataError, match=r"c\.npz: cannot be read as \.npz"):
        load_images(in_order(tmp_path / "c.npz"), small)


def test_missing_and_empty_places(tmp_path: Path, folder: Path, small: Transform) -> None:
    with pytest.raises(DataError, match=r"absent: expected a folder of images or an \.npz file, but there is none"):
        load_images(in_order(tmp_path / "absent"), small)
    with pytest.raises(DataError, match=r"absent\.npz: no such file of images"):
        load_images(in_order(tmp_path / "absent.npz"), small)
    with pytest.raises(DataError, match=r"00\.png: expected a folder .* but it is a file"):
        load_images(in_order(folder / "class_0" / "00.png"), small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there are no images\. Expected files like \.bmp"):
        load_images(in_order(tmp_path / "empty"), small)


@pytest.mark.parametrize("values", [{"count": 13}, {"offset": 12}, {"offset": 10, "count": 3}])
def test_too_few_images(folder: Path, small: Transform, values: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"photos: expected .* from offset \d+ on, but there are 12 in all"):
        load_images(in_order(folder, **values), small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\nclass_0/00.png,1\n",
            r"11 of 12 images of .*photos have no label; the first is 'class_0/03\.png'",
        ),
        ("name,label\nx,1\n", r"expected the columns file and label, but got \['name', 'label'\]"),
        ("", r"expected the columns file and label, but got None"),
        ("file,label\nx,cat\n", r"l\.csv:2: the label of 'x' must be 0, 1, \.\.\., but got 'cat'"),
        ("file,label\nx,-1\n", r"l\.csv:2: the label of 'x' must be 0, 1, \.\.\., but got '-1'"),
        ("file,label\nx\n", r"l\.csv:2: the label of 'x' must be"),
        ("file,label\nx,1\nx,2\n", r"l\.csv:3: 'x' has the labels 1 and 2"),
        ("file,label\n\x00", r"l\.csv"),
    ],
)
def test_bad_csv(folder: Path, small: Transform, text: str, message: str) -> None:
    path = folder.parent / "l.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_images(in_order(folder, labels=path), small)


def test_missing_csv(folder: Path, small: Transform) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file of labels"):
        load_images(in_order(folder, labels=folder / "none.csv"), small)


def test_labels_out_of_range(folder: Path, jpeg_archive: Path, small: Transform) -> None:
    with pytest.raises(
        DataError, match=r"Labels must lie in \[0, 1\].* but 4 of 12 do not; the first is 2 of 'class_2/02"
    ):
        load_images(in_order(folder), small, num_classes=2)
    with pytest.raises(DataError, match=r"holds its own labels; remove labels"):
        load_images(in_order(jpeg_archive, labels=Path("l.csv")), small)


def test_ambiguous_folders(tmp_path: Path, make_image, small: Transform) -> None:
    for name in ("0", "1", "2", "10"):
        (tmp_path / name).mkdir()
        make_image().save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=r"unpadded numbers sort as '0', '1', '10'"):
        load_images(in_order(tmp_path), small)
    make_image().save(tmp_path / "top.png")
    with pytest.raises(DataError, match=r"'top\.png' lies beside class folders such as '0'"):
        load_images(in_order(tmp_path), small)
