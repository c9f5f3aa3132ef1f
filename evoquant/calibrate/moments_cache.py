"""Moments on disk, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evoquant.calibrate.cache import load_or_make, write_whole
from evoquant.calibrate.moments import HELD_OUT_EVERY, MAX_POSITIONS, MAX_WIDTH, Moments, SplitMoments
from evoquant.errors import DataError

FORMAT_VERSION = 2
_PARTS = ("fitted", "held_out")
_METADATA = "evoquant.moments"


def moments_key(*, program_hash: str, images_hash: str, gradient_share: float) -> str:
    """The name of cached moments: a digest of everything that they depend on.

    Args:
        program_hash: Digest of the captured program and its weights.
        images_hash: Digest of the calibration images as the model sees them.
        gradient_share: How much of the importance of a position follows its gradient.
    """
    content = [FORMAT_VERSION, HELD_OUT_EVERY, MAX_POSITIONS, MAX_WIDTH, program_hash, images_hash, gradient_share]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def save_moments(moments: Mapping[str, SplitMoments], path: Path) -> None:
    """Write moments to one safetensors file; what operations share is written once.

    Raises:
        DataError: If the file cannot be written.
    """
    names = {id(value): name for name, value in reversed(list(moments.items()))}
    header = {
        "version": FORMAT_VERSION,
        "stored": {name: names[id(value)] for name, value in moments.items()},
        "rows": {
            names[id(value)]: [value.fitted.rows, value.held_out.rows]
            for value in moments.values()
        },
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for value in moments.values():
        for part, found in zip(_PARTS, (value.fitted, value.held_out), strict=True):
            tensors[f"{names[id(value)]}/{part}/mean"] = found.mean
            tensors[f"{names[id(value)]}/{part}/second"] = found.second
    write_whole(path, save(tensors, metadata={_METADATA: json.dumps(header)}))


def load_moments(path: Path) -> dict[str, SplitMoments]:
    """Read moments back.

    Raises:
        DataError: If the file is missing, damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_METADATA])
            if header["version"] != FORMAT_VERSION:
                raise DataError(f"{path}: expected moments of version {FORMAT_VERSION}, but got {header['version']}.")
            stored = {
                name: SplitMoments(
                    *(
                        Moments(count, file.get_tensor(f"{name}/{part}/mean"), file.get_tensor(f"{name}/{part}/second"))
                        for part, count in zip(_PARTS, rows, strict=True)
                    )
                )
                for name, rows in header["rows"].items()
            }
        return {name: stored[source] for name, source in header["stored"].items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot read moments ({error}). Delete the file to make it anew.") from error


def load_or_collect_moments(
    cache_dir: Path | None, key: str, make: Callable[[], Mapping[str, SplitMoments]]
) -> Mapping[str, SplitMoments]:
    """Cached moments, or new ones that are then cached; see ``load_or_make``."""
    return load_or_make(cache_dir, key, make, read=load_moments, write=save_moments)
