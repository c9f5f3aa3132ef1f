import pytest

from evoquant.run.verdict import verdict
from evoquant.search import ReferencePoint
from evoquant.types.front import Comparison, ParetoPoint

NAMES = ("kl", "memory_mb")
BOX = ReferencePoint(point=(1.0, 1.0), ideal=(0.0, 0.0))


def point(name, kl, memory):
    return ParetoPoint(name, name, {"kl": kl, "memory_mb": memory}, {})


def said(front, comparisons):
    return verdict([front], [point("w6a6", 0.5, 0.5)], NAMES, None, BOX, comparisons)


def test_the_gain_is_over_the_best_of_the_baselines():
    # One point dominates (1 - kl)(1 - memory) of the unit box: 0.25 for the preset, 0.4 for the front.
    text = said(point("p01", 0.2, 0.5), [Comparison("seeds", 0.32, 8, 800), Comparison("random", 0.3, 20, 2000)])
    assert "0.400, the seeds of integer programming alone 0.320: a gain of 25.0 %" in text


@pytest.mark.parametrize("rival", [0.4, 0.7])
def test_a_search_that_gains_nothing_says_so(rival):
    assert "greedy search at equal cost" in said(point("p01", 0.2, 0.5), [Comparison("greedy", rival, 20, 2000)])
    assert "no gain" in said(point("p01", 0.2, 0.5), [Comparison("greedy", rival, 20, 2000)])


def test_without_rivals_the_presets_count():
    assert "the presets together 0.250: a gain of 60.0 %" in said(point("p01", 0.2, 0.5), [])
