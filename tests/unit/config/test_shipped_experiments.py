"""Every experiment file of the repository is valid, and its image sets do not overlap."""

from __future__ import annotations

from pathlib import Path

import pytest

from evoquant.config import ImageSet, load_experiment, with_effort

FOLDER = Path(__file__).parents[3] / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_experiments() -> None:
    assert {path.stem for path in FILES} >= {
        "quickstart",
        "deit_tiny_imagenet",
        "mobilenetv2_imagenet",
        "mobilevit_family_cifar10",
        "mobilevit_xxs_cifar10",
        "mobilevitv2_050_cifar10",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOQUANT_ASSETS", "/assets")
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    data = experiment.data
    assert not overlap(data.calibration, data.selection)
    assert data.test.images not in (data.calibration.images, data.selection.images)
    quick = with_effort(experiment, "quick")
    assert quick.search.evaluations <= 150
    assert quick.data.selection.count is not None
    assert quick.data.selection.count <= 128


def overlap(first: ImageSet, second: ImageSet) -> bool:
    """Whether two parts of one permutation meet; sets of different files, or of fixed parts, cannot."""
    if first.images != second.images:
        return False
    if first.seed != second.seed or first.count is None:
        return True
    return second.offset < first.offset + first.count


def test_checkpoints_lie_beside_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOQUANT_ASSETS", "/assets")
    experiment = load_experiment(FOLDER / "mobilevit_xxs_cifar10.yaml")
    assert experiment.model.checkpoint == FOLDER / "checkpoints" / "mobilevit_xxs.safetensors"
