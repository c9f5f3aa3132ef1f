import math

import pytest

from evoquant.calibrate.guard import DEEPEST_SPLIT, keep_what_helps


def judge_of(gains, calls=None):
    """A loss that falls by the gain of every part."""

    def judge(parts):
        if calls is not None:
            calls.append(parts)
        return (-sum(gains[part] for part in parts),)

    return judge


def test_a_step_that_helps_is_kept_everywhere_after_one_look():
    calls = []
    step, _ = keep_what_helps("norms", ["a", "b", "c"], judge_of({"a": 1, "b": 2, "c": -0.5}, calls), before=(0.0,))
    assert step.kept == ("a", "b", "c")
    assert len(calls) == 1
    assert (step.before, step.after) == pytest.approx((1.0, math.exp(-2.5)))


def test_only_the_half_that_helps_is_kept():
    step, _ = keep_what_helps(
        "norms", ["a", "b", "c", "d"], judge_of({"a": 1, "b": 1, "c": -5, "d": -5}), before=(0.0,)
    )
    assert step.kept == ("a", "b")
    assert step.after == pytest.approx(math.exp(-2))


def test_a_step_that_hurts_changes_nothing_and_costs_few_looks():
    calls = []
    parts = [str(number) for number in range(100)]
    step, _ = keep_what_helps("values", parts, judge_of(dict.fromkeys(parts, -1), calls), before=(0.0,))
    assert step.kept == ()
    assert step.after == step.before
    assert len(calls) <= 2 ** (DEEPEST_SPLIT + 1) - 1


def test_a_gain_below_a_percent_is_noise():
    step, losses = keep_what_helps("norms", ["a"], judge_of({"a": 0.005}), before=(0.0,))
    assert step.kept == ()
    assert losses == (0.0,)


def test_a_step_that_takes_more_from_one_precision_than_it_brings_is_not_kept():
    losses = {frozenset("a"): (-1.0, 0.2), frozenset("b"): (-1.0, 0.4), frozenset("ab"): (-2.0, 0.8)}
    step, kept = keep_what_helps("norms", ["a", "b"], losses.__getitem__, before=(0.0, 0.0))
    assert step.kept == ("a",)
    assert kept == (-1.0, 0.2)


def test_no_parts_no_looks():
    calls = []
    assert keep_what_helps("norms", [], judge_of({}, calls), before=(-1.0,))[0].after == pytest.approx(math.exp(-1))
    assert not calls


def test_the_report_is_plain():
    step, _ = keep_what_helps("norms", ["a"], judge_of({"a": 1}), before=(0.0,))
    assert step.to_dict()["kept"] == ("a",)
