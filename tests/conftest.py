import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads would only wait for each other

from pathlib import Path

import pytest

ASSETS = os.environ.get("EVOQUANT_ASSETS")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing that a test caches outlives the test session or meets the user's own cache."""
    monkeypatch.setenv("EVOQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def assets():
    """The folder of real weights and images, for tests marked ``assets``."""
    if not ASSETS:
        pytest.skip("EVOQUANT_ASSETS is not set: it names the folder of real weights and images")
    folder = Path(ASSETS)
    if not folder.is_dir():
        pytest.skip(f"EVOQUANT_ASSETS names {ASSETS}, which is no folder")
    return folder
