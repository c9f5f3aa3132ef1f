import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.search import Rivals, looks

IMAGES, LOOKS = 512, (128, 256)


def rivals(losses, costs=((1.0, 1.0),)):
    return Rivals(np.array(costs), np.atleast_2d(losses)[:, None, :])


def heavy_tailed(rng, count):
    """Divergences of images: an easy many, a hard few, as they are for quantized classifiers."""
    return np.exp(rng.normal(-6.0, 1.5, size=count))


def paired(rng, own, rivals_own, *, ratio=1.0):
    """Losses of a candidate and its rival that share what makes images hard; the ratio of their means is exact."""
    hardness = rng.normal(-6.0, 1.2, size=IMAGES)
    candidate, rival = (np.exp(hardness + rng.normal(0.0, width, size=IMAGES)) for width in (own, rivals_own))
    return candidate * ratio * rival.mean() / candidate.mean(), rival


def share_stopped(trials, **options):
    """Share of candidates of the same costs that are stopped at one of the looks."""
    rng = np.random.default_rng(1)
    stopped = 0
    for _ in range(trials):
        candidate, rival = paired(rng, **options)
        stopped += any(rivals(rival).beat(np.array([1.0, 1.0]), candidate[None, :look]) is not None for look in LOOKS)
    return stopped / trials


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([32] * 16, (128, 256)),
        ([32] * 15 + [20], (128, 256)),
        ([100] * 5, (200, 300)),
        ([32] * 4, (64,)),
        ([16] * 3, ()),
        ([512], ()),
        ([], ()),
    ],
)
def test_looks_are_whole_batches_of_enough_images(batches, expected):
    assert looks(batches) == expected


def test_who_is_clearly_worse_is_beaten_and_estimated_by_the_difference():
    rng = np.random.default_rng(0)
    member = heavy_tailed(rng, IMAGES)
    worse = 1.5 * member + 0.002
    estimate = rivals(member).beat(np.array([1.0, 2.0]), worse[None, :128])
    assert estimate == pytest.approx([member.mean() + (worse - member)[:128].mean()])
    # The mean of the prefix alone is off by more: the images of the prefix are not those of the whole.
    assert abs(estimate[0] - worse.mean()) < abs(worse[:128].mean() - worse.mean())


def test_who_is_cheaper_in_anything_is_never_beaten():
    member = heavy_tailed(np.random.default_rng(0), IMAGES)
    assert rivals(member).beat(np.array([0.9, 2.0]), 10 * member[None, :128]) is None


def test_every_loss_has_to_be_worse():
    rng = np.random.default_rng(0)
    member = np.stack([heavy_tailed(rng, IMAGES), rng.integers(2, size=IMAGES)])
    field = Rivals(np.array([[1.0]]), member[None])
    worse = member[:, :128] + np.array([[0.1], [0.0]])
    assert field.beat(np.array([1.0]), worse) is None
    assert field.beat(np.array([1.0]), worse + 0.1) is not None


def test_without_a_loss_nothing_is_beaten():
    field = Rivals(np.array([[1.0]]), np.empty((1, 0, IMAGES)))
    assert field.beat(np.array([2.0]), np.empty((0, 128))) is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(LOOKS))
def test_the_same_losses_are_never_beaten(seed, look):
    member = heavy_tailed(np.random.default_rng(seed), IMAGES)
    assert rivals(member).beat(np.array([1.0, 1.0]), member[None, :look]) is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(LOOKS))
def test_the_estimate_is_dominated_by_a_rival(seed, look):
    rng = np.random.default_rng(seed)
    members = np.stack([heavy_tailed(rng, IMAGES) for _ in range(3)])
    candidate = heavy_tailed(rng, look) * 3
    estimate = rivals(members, [(1.0, 1.0)] * 3).beat(np.array([1.0, 1.0]), candidate[None])
    assert estimate is None or (members.mean(axis=1) < estimate[0]).any()


@pytest.mark.parametrize(("own", "rivals_own"), [(0.8, 0.8), (0.3, 1.4), (1.4, 0.3)])
def test_an_equal_candidate_is_stopped_no_more_often_than_the_confidence_says(own, rivals_own):
    # 1 of 740 at each of two looks; without the spread of the rival the second case has 9 %.
    assert share_stopped(3000, own=own, rivals_own=rivals_own) <= 2 / 740


def test_a_candidate_that_is_worse_is_mostly_stopped():
    assert share_stopped(300, own=0.5, rivals_own=0.5, ratio=2.0) > 0.95
    assert share_stopped(300, own=0.5, rivals_own=0.5, ratio=1.3) > 0.5
