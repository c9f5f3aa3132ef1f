from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import ConfigurationError, InfeasibleError
from evoquant.search import Termination, knee, query, ranking

CORNER = np.array([[0.0, 10.0], [1.0, 2.0], [2.0, 1.5], [3.0, 1.2], [10.0, 1.0]])


def test_the_knee_is_at_the_corner():
    assert knee(CORNER) == 1


def test_a_heavy_tail_does_not_drag_the_knee_along():
    front = np.vstack([CORNER, [[1e4, 0.9], [1e5, 0.8], [1e6, 0.7]]])
    linear = (front - front.min(axis=0)) / np.ptp(front, axis=0)
    assert np.argmin(np.linalg.norm(linear, axis=1)) == 5  # a useless point looks near on a linear scale
    assert knee(front) < 5


@given(st.permutations(range(5)), st.floats(0.01, 1000), st.floats(-100, 100))
def test_the_knee_ignores_order_unit_and_origin(order, unit, origin):
    order = list(order)
    assert order[knee(CORNER[order] * [unit, 1.0] + [0.0, origin])] == 1


def test_limits_keep_the_knee_useful():
    front = np.array([[0.0, 9.0], [0.8, 6.0], [5.0, 1.0], [9.0, 0.5]])
    assert knee(front) == 2
    assert knee(front, limits=[1.0, None]) in (0, 1)
    assert knee(front, limits=[-1.0, None]) == 2  # none is eligible, so all are


def test_weights_move_the_knee():
    costs = np.linspace(1.0, 10.0, 10)
    front = np.column_stack([11.0 - costs, costs, costs, costs])
    assert front[knee(front), 0] > front[knee(front, weights=(3, 1, 1, 1)), 0]


def test_one_point_and_constant_objectives():
    assert knee([[1.0, 2.0, 3.0]]) == 0
    assert knee([[1.0, 5.0], [1.0, 4.0]]) == 1


def test_query_and_ranking():
    assert query(CORNER, [2.0, None]) == [0, 1, 2]
    assert query(CORNER, [1.0, 1.0]) == []
    assert ranking(CORNER, [1.0, 0.0]) == [0, 1, 2, 3, 4]
    assert ranking(CORNER, [0.0, 1.0]) == [4, 3, 2, 1, 0]
    assert ranking(CORNER, [1.0, 1.0])[0] == 1


def test_bad_questions():
    with pytest.raises(InfeasibleError, match="front"):
        knee(np.empty((0, 2)))
    with pytest.raises(ConfigurationError, match="Expected 2 limits"):
        query(CORNER, [1.0])
    with pytest.raises(ConfigurationError, match="Expected 2 weights"):
        ranking(CORNER, [0.0, 0.0])


def test_termination_reasons():
    limits = Termination(evaluations=100, minutes=2, generations=5, patience=2, min_gain=0.01)

    def reason(evaluations=1, seconds=0.0, hypervolumes=()):
        return limits.reason(evaluations=evaluations, seconds=seconds, hypervolumes=hypervolumes)

    assert reason() is None
    assert reason(evaluations=100) == "100 of 100 evaluations done"
    assert reason(seconds=120.0) == "2 minutes are over"
    assert reason(hypervolumes=[0.1, 0.2, 0.3, 0.4, 0.5]) == "5 of 5 generations done"
    assert reason(hypervolumes=[0.5, 0.501, 0.502]) == "no gain of hypervolume in 2 generations"
    assert reason(hypervolumes=[0.5, 0.501, 0.51]) is None  # slow, but together more than a hundredth
    assert reason(hypervolumes=[0.0, 0.0, 0.0]) == "no gain of hypervolume in 2 generations"


def test_no_limit_never_ends():
    assert Termination().reason(evaluations=10**9, seconds=1e9, hypervolumes=[0.0] * 1000) is None
    with pytest.raises(ConfigurationError, match="patience must be positive, but got 0"):
        Termination(patience=0)
    with pytest.raises(ConfigurationError, match="min_gain"):
        Termination(min_gain=-1.0)
