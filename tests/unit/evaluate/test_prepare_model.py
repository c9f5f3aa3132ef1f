"""Rescaling under the guard: exact in floating point, remembered, and never worse on the images that judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoquant.config.preparation import PreparationSpec, RescalingStep
from evoquant.config.quantizers import CompensationSpec
from evoquant.errors import DataError
from evoquant.evaluate.prepare_model import improve
from evoquant.graph import CapturedModel, capture

SIZE = 8


class Uneven(nn.Module):
    """A norm whose channels differ by a hundred times, before two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 2, stride=2), nn.LayerNorm(16)
        self.fc1, self.fc2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)
        with torch.no_grad():
            self.norm.weight[::4] *= 100
            self.fc1.weight[:, ::4] /= 100

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(functional.gelu(self.fc1(self.norm(x))))
        scores: Tensor = self.head(x.mean(1))
        return scores


@pytest.fixture
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Uneven(), (3, SIZE, SIZE), name="uneven")


def _images(count: int) -> list[Tensor]:
    return [torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("compensation", [CompensationSpec(), CompensationSpec(weight_compensation="none")])
@pytest.mark.parametrize(("rescaling", "kept"), [("norms", "fc1"), ("rotations", "stem")])
def test_what_helps_is_kept_and_changes_nothing(
    captured: CapturedModel, compensation: CompensationSpec, rescaling: RescalingStep, kept: str
) -> None:
    prepared, report = improve(captured, _images(16), PreparationSpec(rescaling=(rescaling,)), compensation)
    (step,) = report.steps
    assert step.step == rescaling
    assert kept in step.kept
    assert step.after < step.before
    assert report.held_out_images == 4
    assert report.difference < 1e-5
    assert prepared is not captured


def test_decisions_are_remembered(captured: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "kept.json"
    first, report = improve(captured, _images(16), PreparationSpec(), CompensationSpec(), known=known)
    monkeypatch.setattr("evoquant.evaluate.prepare_model._Judge.__call__", None)
    second, again = improve(captured, _images(16), PreparationSpec(), CompensationSpec(), known=known)
    assert again.steps == report.steps
    images = _images(2)[0]
    assert torch.equal(first(images), second(images))


def test_nothing_asked_for_nothing_done(captured: CapturedModel) -> None:
    prepared, report = improve(captured, _images(16), PreparationSpec(rescaling=()), CompensationSpec())
    assert prepared is captured
    assert report.steps == ()


def test_too_few_images(captured: CapturedModel) -> None:
    with pytest.raises(DataError, match="at least 4 calibration images, but got 2"):
        improve(captured, _images(2), PreparationSpec(), CompensationSpec())
