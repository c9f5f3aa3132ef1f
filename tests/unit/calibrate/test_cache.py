import logging
from dataclasses import fields

import numpy as np
import pytest
import torch

from evoquant.calibrate import (
    Statistics,
    TensorObserver,
    TensorStatistics,
    load_or_collect,
    load_statistics,
    save_statistics,
    statistics_key,
)
from evoquant.errors import DataError


def make(images=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in ("conv2d", "linear_1"):
        observer = TensorObserver(name, channel_axis=1)
        for _ in range(images):
            observer.update(torch.randn(1, 4, 5, generator=generator))
        tensors[name] = observer.finish()
    return Statistics(images, tensors)


def assert_same(first, second):
    assert first.images == second.images
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        for field in fields(TensorStatistics):
            assert np.array_equal(getattr(tensor, field.name), getattr(second[name], field.name)), field.name


def test_written_and_read_back(tmp_path):
    statistics = make()
    path = tmp_path / "new" / "s.safetensors"
    save_statistics(statistics, path)
    assert_same(load_statistics(path), statistics)
    assert [entry.name for entry in path.parent.iterdir()] == ["s.safetensors"]


def test_size_does_not_grow_with_the_images(tmp_path):
    sizes = []
    for images in (2, 300):
        save_statistics(make(images), tmp_path / "s")
        sizes.append((tmp_path / "s").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 200


def test_collected_once_and_then_loaded(tmp_path):
    calls = []

    def collect():
        calls.append(1)
        return make()

    first = load_or_collect(tmp_path, "key", collect)
    assert_same(load_or_collect(tmp_path, "key", collect), first)
    assert len(calls) == 1
    load_or_collect(tmp_path, "other", collect)
    load_or_collect(None, "key", collect)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "version", "missing array"])
def test_a_damaged_file_is_named_and_made_anew(tmp_path, damage, caplog):
    path = tmp_path / "key.safetensors"
    save_statistics(make(), path)
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": content[:-100],
        "text": b"not a tensor file at all",
        "version": content.replace(b'\\"version\\": 1', b'\\"version\\": 9'),
        "missing array": content.replace(b"conv2d/counts", b"conv2d/Counts"),
    }[damage]
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"key\.safetensors"):
        load_statistics(path)
    with caplog.at_level(logging.WARNING):
        statistics = load_or_collect(tmp_path, "key", make)
    assert "Collecting again" in caplog.text
    assert_same(load_statistics(path), statistics)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot read calibration statistics"):
        load_statistics(tmp_path / "none.safetensors")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write calibration statistics"):
        save_statistics(make(2), tmp_path / "file" / "s.safetensors")


def test_key_depends_on_everything_but_the_order_of_names():
    base = {"program_hash": "p", "images_hash": "i", "node_names": ["a", "b"]}
    key = statistics_key(**base)
    assert statistics_key(**{**base, "node_names": ["b", "a"]}) == key
    changes = ({"program_hash": "q"}, {"images_hash": "j"}, {"node_names": ["a"]}, {"channel_axis": {"a": 1}})
    keys = {key, *(statistics_key(**{**base, **change}) for change in changes)}
    assert len(keys) == 5
