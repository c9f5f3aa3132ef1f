"""Statistics on disk, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from evoquant.calibrate.statistics import Statistics, TensorStatistics
from evoquant.errors import DataError

FORMAT_VERSION = 1
_ARRAYS = ("channel_minimum", "channel_maximum", "counts")
_SCALARS = tuple(field.name for field in fields(TensorStatistics) if field.name not in _ARRAYS)
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


def statistics_key(
    *,
    program_hash: str,
    images_hash: str,
    node_names: Collection[str],
    channel_axis: Mapping[str, int] | None = None,
) -> str:
    """The name of cached statistics: a digest of everything that they depend on.

    Args:
        program_hash: Digest of the captured program and its weights.
        images_hash: Digest of the calibration images as the model sees them.
        node_names: Names of the observed nodes; their order does not matter.
        channel_axis: As given to ``collect``.
    """
    content = [FORMAT_VERSION, program_hash, images_hash, sorted(node_names), sorted((channel_axis or {}).items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics to one safetensors file, whose metadata holds the numbers as JSON; all or nothing.

    Args:
        statistics: What to write.
        path: File to write or replace; its folder is made if needed.

    Raises:
        DataError: If the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, tensor in statistics.tensors.items():
        scalars[name] = {field: getattr(tensor, field) for field in _SCALARS}
        for field in _ARRAYS:
            arrays[f"{name}/{field}"] = np.ascontiguousarray(getattr(tensor, field))
    header = {"version": FORMAT_VERSION, "images": statistics.images, "tensors": scalars}
    write_whole(path, save(arrays, metadata={"evoquant.statistics": json.dumps(header)}))


def load_statistics(path: Path) -> Statistics:
    """Read statistics back.

    Args:
        path: A file written by ``save_statistics``.

    Raises:
        DataError: If the file is missing, damaged, or of another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["evoquant.statistics"])
            if header["version"] != FORMAT_VERSION:
                raise DataError(
                    f"{path}: expected statistics of version {FORMAT_VERSION}, but got {header['version']}."
                )
            tensors = {
                name: TensorStatistics(**scalars, **{field: file.get_tensor(f"{name}/{field}") for field in _ARRAYS})
                for name, scalars in header["tensors"].items()
            }
        return Statistics(header["images"], tensors)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: cannot read calibration statistics ({error}). Delete the file to make it anew."
        ) from error


def load_or_collect(cache_dir: Path | None, key: str, make: Callable[[], Statistics]) -> Statistics:
    """Cached statistics, or new ones that are then cached; see ``load_or_make``."""
    return load_or_make(cache_dir, key, make, read=load_statistics, write=save_statistics)


def load_or_make(
    cache_dir: Path | None,
    key: str,
    make: Callable[[], T],
    *,
    read: Callable[[Path], T],
    write: Callable[[T, Path], None],
) -> T:
    """What the cache holds, or what is made anew and then cached.

    A cached file that cannot be read is reported to the log, made anew and replaced.

    Args:
        cache_dir: Folder of the cache; None caches nothing.
        key: Name of the file.
        make: Makes it.
        read: Reads it; raises ``DataError`` where it cannot.
        write: Writes it.

    Raises:
        DataError: If the new file cannot be written.
    """
    if cache_dir is None:
        return make()
    path = cache_dir / f"{key}.safetensors"
    if path.exists():
        try:
            return read(path)
        except DataError as error:
            _LOG.warning("%s Collecting again.", error)
    made = make()
    write(made, path)
    return made


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once: whoever reads it finds the old or the new one.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot write calibration statistics ({error}).") from error
