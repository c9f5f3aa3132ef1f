import numpy as np
import pytest
import torch

from evoquant.errors import ConfigurationError
from evoquant.evaluate import LabelledImages, standings
from evoquant.evaluate.metrics import IMAGE_SCORE, score_images

IMAGES, CLASSES = 4000, 5


def labelled(logits, labels):
    return LabelledImages((torch.zeros(len(labels), 1, 1, 1),), labels, logits)


def calibrated(seed, sharpness):
    """Logits of a model whose probabilities are right: the labels of the images are drawn from them."""
    return sharpness * torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def labels():
    probabilities = calibrated(0, 2.0).softmax(1)
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(9)).flatten()


@pytest.fixture(scope="module")
def images(labels):
    return {"coarse": labelled(0.5 * calibrated(0, 2.0), labels), "fine": labelled(calibrated(0, 2.0), labels)}


def test_the_reference_is_the_one_with_the_least_cross_entropy(images, labels):
    found = standings(images)
    assert found["fine"].is_reference
    assert not found["coarse"].is_reference
    for name, standing in found.items():
        expected = torch.nn.functional.cross_entropy(images[name].reference, labels).item()
        assert standing.own.cross_entropy == pytest.approx(expected, rel=1e-5)
    coarse = found["coarse"].own
    assert coarse.offset == pytest.approx(coarse.cross_entropy - found["fine"].own.cross_entropy)
    assert 0.0 < coarse.offset_stderr < 0.1 * coarse.offset + 0.01
    assert found["coarse"].top1_behind_pp == 0.0, "halved logits have the same order"
    assert standings(images, reference="coarse")["fine"].own.offset == pytest.approx(-coarse.offset)


def test_cross_entropy_of_a_changed_model_is_that_of_the_calibrated_one_and_the_divergence(images, labels):
    noise = 0.3 * torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(4))
    changed = images["fine"].reference + noise
    scores = score_images(changed, images["fine"].reference, labels)
    judged = standings(images)["fine"].judged(scores)
    loss = torch.nn.functional.cross_entropy(changed.double(), labels) - torch.nn.functional.cross_entropy(
        images["fine"].reference.double(), labels
    )
    assert judged.kl == pytest.approx(loss.item(), abs=0.01)


def test_drops_are_paired_with_the_reference(labels):
    right = torch.nn.functional.one_hot(labels, CLASSES).double()
    worse = right.clone()
    worse[:400] = -right[:400]
    images = {"worse": labelled(worse, labels), "best": labelled(4 * right, labels)}
    found = standings(images)
    scores = np.zeros(IMAGES, dtype=IMAGE_SCORE)
    scores["is_right"][800:] = True
    scores["was_right"] = scores["is_right"]
    accuracy = found["worse"].judged(scores)
    assert accuracy.fp32_top1 == 100.0
    assert accuracy.drop_pp == pytest.approx(20.0)
    assert accuracy.kl == found["worse"].own.offset
    assert found["worse"].top1_behind_pp == pytest.approx(10.0)
    assert scores["was_right"].sum() == IMAGES - 800, "the scores themselves stay as they are"


def test_other_labels_are_refused(images, labels):
    with pytest.raises(ConfigurationError, match="labels of 'fine' and 'other' differ"):
        standings({"fine": images["fine"], "other": labelled(images["fine"].reference, labels.flip(0))})
