from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import ConfigurationError, InfeasibleError
from evoquant.search import Evaluated, ParetoArchive, ReferencePoint

small = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=25)


def entries(points, violations=None):
    return [
        Evaluated(i, f"{i:03d}", np.array([i]), tuple(map(float, point)), 0.0 if violations is None else violations[i])
        for i, point in enumerate(points)
    ]


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(small, st.randoms(use_true_random=False))
def test_the_front_is_the_definition_in_any_order(points, random):
    archive = ParetoArchive()
    shuffled = entries(points)
    random.shuffle(shuffled)
    for entry in shuffled:
        archive.add([entry])
    expected = sorted({p for p in points if not any(dominates(q, p) for q in points)})
    assert [entry.objectives for entry in archive.front] == [tuple(map(float, p)) for p in expected]
    for entry in archive.front:  # of equal points the first key stays
        assert entry.key == f"{points.index(tuple(map(int, entry.objectives))):03d}"


def test_the_infeasible_and_the_failed_stay_outside():
    archive = ParetoArchive()
    points = [(1.0, 1.0), (0.0, 0.0), (np.nan, 0.0), (0.0, 9.0), (0.0, 8.0)]
    assert not archive.add(entries(points, [2.0, 3.0, 0.0, 1.0, 1.0]))
    assert archive.front == ()
    assert archive.best_infeasible.objectives == (0.0, 8.0)
    assert archive.add(entries([(5.0, 5.0)]))
    assert [entry.objectives for entry in archive.front] == [(5.0, 5.0)]
    assert (archive.evaluations, archive.failures) == (6, 1)
    assert not archive.add(entries([(6.0, 5.0)]))


def test_a_stopped_candidate_is_counted_and_nothing_more():
    archive = ParetoArchive(ReferencePoint((9.0, 9.0), (0.0, 0.0)))
    best, infeasible = entries([(0.0, 0.0), (1.0, 1.0)], [0.0, 1.0])
    assert not archive.add([replace(best, is_stopped=True), replace(infeasible, is_stopped=True)])
    assert (archive.front, archive.best_infeasible, archive.hypervolume) == ((), None, 0.0)
    assert (archive.evaluations, archive.failures, archive.stopped) == (2, 0, 2)


def test_an_infinite_violation_is_a_failure():
    archive = ParetoArchive()
    archive.add(entries([(0.0, 0.0)], [np.inf]))
    assert archive.best_infeasible is None
    assert archive.failures == 1


def naive_hypervolume(points, steps):
    """Count the cells of a grid on [0, 1)^m that some point dominates."""
    axes = [np.arange(steps) / steps] * points.shape[1]
    cells = np.array(list(itertools.product(*axes)))
    covered = (cells[:, None, :] >= points[None]).all(axis=2).any(axis=1)
    return covered.mean()


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_against_counting(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 10, size=(6, objectives)) / 10
    reference = ReferencePoint((1.0,) * objectives, (0.0,) * objectives)
    assert reference.hypervolume(points) == pytest.approx(naive_hypervolume(points, 10))


def test_hypervolume_by_hand_and_outside_the_box():
    reference = ReferencePoint((4.0, 10.0), (0.0, 0.0))
    assert reference.hypervolume([[2.0, 5.0]]) == pytest.approx(0.25)
    assert reference.hypervolume([[2.0, 5.0], [1.0, 7.5]]) == pytest.approx((2 * 5 + 1 * 2.5) / 40)
    assert reference.hypervolume([[4.0, 0.0], [9.0, 1.0]]) == 0.0
    assert reference.hypervolume([[-3.0, -1.0]]) == pytest.approx(1.0)
    assert reference.hypervolume(np.empty((0, 2))) == 0.0


def test_the_reference_point_is_derived_and_capped():
    seeds = [[0.0, 2.0, -1.0], [50.0, 4.0, 3.0], [np.inf, 0.0, 0.0]]
    reference = ReferencePoint.derive(seeds, limits=[20.0, None, None])
    assert reference.point == pytest.approx((20.0, 4.4, 3.3))
    assert reference.ideal == pytest.approx((0.0, 0.0, -1.4))
    assert ReferencePoint.from_dict(reference.to_dict()) == reference
    assert ReferencePoint.derive([[0.0, 5.0]]).point == pytest.approx((0.1, 5.5))


def test_a_moved_box_keeps_the_volumes_of_what_moves_with_it():
    box, points = ReferencePoint((1.0, 2.0), (0.0, 0.0)), np.array([[0.2, 1.5], [0.7, 0.1]])
    by = np.array([-0.3, 4.0])
    assert box.moved(by).hypervolume(points + by) == pytest.approx(box.hypervolume(points))


def test_reference_points_that_cannot_be():
    with pytest.raises(InfeasibleError, match="No candidate could be evaluated"):
        ReferencePoint.derive([[np.nan, 1.0]])
    with pytest.raises(ConfigurationError, match="must exceed"):
        ReferencePoint((1.0, 0.0), (0.0, 0.0))


@given(st.lists(small, min_size=1, max_size=5))
def test_the_history_never_falls(batches):
    archive = ParetoArchive(ReferencePoint((6.0, 6.0, 6.0), (0.0, 0.0, 0.0)))
    for number, batch in enumerate(batches):
        archive.add(Evaluated(i, f"{number}-{i}", np.array([i]), p) for i, p in enumerate(batch))
        archive.record()
    values = [value for _, value in archive.history]
    assert values == sorted(values)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert archive.history[-1][0] == sum(map(len, batches))


def test_the_reference_point_is_frozen():
    archive = ParetoArchive()
    with pytest.raises(InfeasibleError, match="no reference point"):
        archive.record()
    reference = ReferencePoint((1.0,), (0.0,))
    archive.freeze(reference)
    archive.freeze(reference)
    assert archive.record() == 0.0
    with pytest.raises(InfeasibleError, match="frozen"):
        archive.freeze(ReferencePoint((2.0,), (0.0,)))
