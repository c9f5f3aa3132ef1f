"""Files that travel with the package: search spaces, hardware models, the embedded default."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder of shipped files with this name.

    In an installed wheel it lies inside the package; in a source checkout, beside it.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def cache_folder(name: str) -> Path:
    """The folder of this user's cached files of one kind, not yet made.

    It lies in the folder that ``EVOQUANT_CACHE`` names, else where the platform keeps caches.
    """
    given = os.environ.get("EVOQUANT_CACHE")
    if given:
        return Path(given).expanduser() / name
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "evoquant" / name
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "evoquant" / name
