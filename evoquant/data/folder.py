"""Image folders: flat ones with a CSV of labels, or one subfolder for each class."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from PIL import Image

from evoquant.data.listing import ImageListing
from evoquant.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
LABELS_FILE = "labels.csv"


def list_folder(folder: Path, labels: Path | None) -> ImageListing:
    """List the images below a folder in alphabetical order, and find their labels.

    Labels come from ``labels``, else from ``labels.csv`` in the folder, else from the class subfolders in alphabetical
    order; a flat folder without CSV has none.

    Raises:
        DataError: If the folder has no images, a file has no label, or the CSV cannot be read.
    """
    files = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise DataError(f"{folder}: there are no images. Expected files like {', '.join(sorted(SUFFIXES))}.")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    if labels is None and (folder / LABELS_FILE).is_file():
        labels = folder / LABELS_FILE
    numbers = _class_labels(folder, names) if labels is None else _csv_labels(files, folder, labels)
    return ImageListing(str(folder), names, numbers, lambda index: Image.open(files[index]))


def _class_labels(folder: Path, names: tuple[str, ...]) -> tuple[int, ...] | None:
    classes = [name.split("/")[0] if "/" in name else None for name in names]
    known = sorted({name for name in classes if name is not None})
    if not known:
        return None
    if None in classes:
        raise DataError(
            f"{folder}: '{names[classes.index(None)]}' lies beside class folders such as '{known[0]}', so it has no "
            f"label. Move it, or give a CSV file with the columns file and label."
        )
    if all(name.isdecimal() for name in known) and known != sorted(known, key=int):
        raise DataError(
            f"{folder}: class folders named by unpadded numbers sort as '{known[0]}', '{known[1]}', '{known[2]}', "
            "which may not be the classes of the model. Pad them with zeros, or give a CSV file with the columns file "
            "and label."
        )
    number = {name: index for index, name in enumerate(known)}
    return tuple(number[name] for name in classes if name is not None)


def _csv_labels(files: list[Path], folder: Path, path: Path) -> tuple[int, ...]:
    known = read_labels(path)
    found = [
        known.get(Path(os.path.relpath(file, path.parent)).as_posix(), known.get(file.relative_to(folder).as_posix()))
        for file in files
    ]
    missing = [str(file.relative_to(folder)) for file, label in zip(files, found, strict=True) if label is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(files)} images of {folder} have no label; the first is '{missing[0]}'. "
            f"Paths in the file count from {path.parent} or from the image folder."
        )
    return tuple(label for label in found if label is not None)


def read_labels(path: Path) -> dict[str, int]:
    """Read a CSV file with the columns ``file`` and ``label``.

    Raises:
        DataError: If it cannot be read, lacks a column, has a label that is no whole number, or two for one file.
    """
    known: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: expected the columns file and label, but got {reader.fieldnames}.")
            for row in reader:
                name, label = row["file"] or "", row["label"] or ""
                if not label.strip().isdecimal():
                    raise DataError(
                        f"{path}:{reader.line_num}: the label of '{name}' must be 0, 1, ..., but got '{label}'."
                    )
                if known.setdefault(name, int(label)) != int(label):
                    raise DataError(f"{path}:{reader.line_num}: '{name}' has the labels {known[name]} and {label}.")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file of labels. Check data.*.labels.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    return known
