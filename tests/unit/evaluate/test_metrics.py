import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import ModelError
from evoquant.evaluate.metrics import Accuracy, compare_logits, wilson_interval


def test_identical_logits_have_no_divergence_and_no_drop():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    result = compare_logits(logits, logits.clone(), torch.tensor([0, 2]))
    assert (result.kl, result.drop_pp, result.drop_stderr_pp) == (0.0, 0.0, 0.0)
    assert (result.top1, result.fp32_top1, result.agreement) == (50.0, 50.0, 100.0)


def test_divergence_of_two_classes_follows_its_formula():
    p, q = 0.8, 0.6
    reference = torch.tensor([[math.log(p), math.log(1 - p)]])
    logits = torch.tensor([[math.log(q), math.log(1 - q)]])
    result = compare_logits(logits, reference, torch.tensor([0]))
    assert result.kl == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-5)


def test_drop_is_paired():
    reference = torch.eye(4) * 5
    logits = torch.eye(4)[[1, 0, 2, 3]] * 5
    labels = torch.tensor([0, 0, 2, 3])
    result = compare_logits(logits, reference, labels)
    # Image 0 is lost and image 1 is won: no net drop, but not without uncertainty.
    assert result.drop_pp == 0.0
    assert result.drop_stderr_pp == pytest.approx(100 * math.sqrt((1 + 1) / 3) / 2)


def test_logits_that_are_not_finite_name_the_first_image():
    logits = torch.zeros(3, 2)
    logits[1, 0] = float("nan")
    with pytest.raises(ModelError, match="1 of 3 images, first for image 1"):
        compare_logits(logits, torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))


def test_wilson_interval_agrees_with_a_published_example():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 gives 0.2553 to 0.3662 by the score method.
    low, high = wilson_interval(81, 263)
    assert (low, high) == (pytest.approx(25.53, abs=0.01), pytest.approx(36.62, abs=0.01))


@given(st.integers(1, 5000), st.data())
def test_wilson_interval_holds_the_share(images, data):
    hits = data.draw(st.integers(0, images))
    low, high = wilson_interval(hits, images)
    assert 0 <= low <= 100 * hits / images + 1e-9
    assert 100 * hits / images - 1e-9 <= high <= 100


def test_accuracy_survives_json():
    result = compare_logits(torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    assert Accuracy.from_dict({**result.to_dict(), "top1_ci95": list(result.top1_ci95)}) == result
