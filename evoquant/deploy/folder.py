"""A packed model as a folder: ``model.safetensors`` with everything that is large, ``model.json`` with the rest.

Weights are stored as packed codes of their own bits. Reading needs neither the original model nor timm.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from evoquant.deploy.packed_model import PackedModel
from evoquant.deploy.recipe import Recipe
from evoquant.errors import ConfigurationError, ModelError, RunError

SCHEMA_VERSION = 1
FORMAT = "evoquant-packed-model"
TENSORS = "model.safetensors"
DESCRIPTION = "model.json"


def save_packed(model: PackedModel, folder: Path) -> Path:
    """Write a packed model; files of an earlier one are replaced.

    Returns:
        The folder.

    Raises:
        RunError: If it cannot be written.
    """
    tensors = save({name: tensor.contiguous() for name, tensor in model.recipe.tensors().items()})
    description = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "tensors": {"file": TENSORS, "bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()},
        **model.recipe.to_dict(),
    }
    text = json.dumps(description, allow_nan=False, separators=(",", ":")) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSORS, tensors)
        _replace(folder / DESCRIPTION, text.encode())
    except OSError as error:
        raise RunError(f"Cannot write the packed model to {folder}: {error}.") from error
    return folder


def load_packed(folder: Path, *, isa: str | None = None) -> PackedModel:
    """Read a packed model.

    Args:
        folder: What ``save_packed`` has written.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Raises:
        ConfigurationError: If the folder holds no packed model, or one of another version.
        ModelError: If a file is damaged, or the two do not belong together.
        KernelError: If the native kernels are not built.
    """
    description = _description(folder / DESCRIPTION)
    file = folder / TENSORS
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}. Export the model again.") from error
    expected = description.get("tensors")
    digest = hashlib.sha256(data).hexdigest()
    if not isinstance(expected, dict) or expected.get("sha256") != digest:
        raise ModelError(
            f"{file}: expected the SHA-256 that {DESCRIPTION} names, but got {digest}. The file is damaged or belongs "
            "to another model; export the model again."
        )
    try:
        return PackedModel(Recipe.from_dict(description, load(data)), isa=isa)
    except SafetensorError as error:
        raise ModelError(f"{file}: is no safetensors file: {error}. Export the model again.") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder / DESCRIPTION}: does not describe a packed model: {error!r}.") from error


def file_bytes(folder: Path) -> dict[str, int]:
    """Bytes of the two files of a packed model."""
    return {name: (folder / name).stat().st_size for name in (TENSORS, DESCRIPTION)}


def _description(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{file}: no such file. Give a folder that 'evoquant export' has written (RUN_DIR/exports/ID)."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}. Export the model again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigurationError(f"{file}: is not the description of a packed model.")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigurationError(
            f"{file}: expected schema_version {SCHEMA_VERSION}, but got {data.get('schema_version')!r}. Export again "
            "with this version of evoquant."
        )
    return data


def _replace(file: Path, data: bytes) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
