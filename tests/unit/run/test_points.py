"""Who may be the knee."""

from __future__ import annotations

import pytest

from evoquant.run.points import KNEE_KL, knee_of
from evoquant.types.front import ParetoPoint

NAMES = ("kl", "latency_ms", "energy_mj", "memory_mb")


def _point(name, *, kl, drop=0.0, energy=1.0, size=1.0):
    objectives = {
        "kl": kl,
        "accuracy_drop_pp": drop,
        "latency_ms": energy,
        "energy_mj": energy,
        "memory_mb": size,
        "model_size_bytes": size,
    }
    return ParetoPoint(id=name, name=name, objectives=objectives, plan={}, test=None)


BOUND = _point("w8a8", kl=0.01)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (
            _point("near", kl=0.01 + 0.9 * KNEE_KL, energy=0.9, size=0.9),
            _point("far", kl=0.01 + 1.1 * KNEE_KL, energy=0.1, size=0.1),
        ),
        (
            _point("same", kl=0.02, energy=0.9, size=0.9),
            _point("loses", kl=0.001, drop=0.6, energy=0.1, size=0.1),
        ),
        (_point("cheaper", kl=0.02, energy=0.9, size=0.9), _point("costly", kl=0.001, energy=1.0, size=0.1)),
    ],
)
def test_the_knee_loses_little_and_is_cheaper_than_uniform_8_bits(better, worse):
    for front in ([better, worse], [worse, better]):
        assert knee_of(front, [BOUND], NAMES) == better.id


def test_where_nothing_is_cheaper_or_loses_little_there_still_is_a_knee():
    costly = _point("costly", kl=0.005, energy=2.0)
    lossy = _point("lossy", kl=1.0, drop=20.0, energy=0.1, size=0.1)
    assert knee_of([costly, lossy], [BOUND], NAMES) == "costly"
    assert knee_of([lossy], [BOUND], NAMES) == "lossy"
    assert knee_of([], [BOUND], NAMES) is None
