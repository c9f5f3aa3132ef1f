"""What is kept of the ways to fit a plan."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from evoquant.evaluate.fit_finalist import worth_keeping


@pytest.mark.parametrize(
    ("divergences", "kept"),
    [
        ({"search": 0.2, "sequential": 0.19, "learned": 0.18}, "learned"),
        ({"search": 0.2, "sequential": 0.1, "learned": 0.18}, "sequential"),
        ({"search": 0.2, "sequential": 0.199, "learned": 0.21}, "search"),
        ({"search": 0.2, "sequential": 0.3}, "search"),
    ],
)
def test_a_fit_is_kept_where_it_gains_one_percent(divergences: Mapping[str, float], kept: str) -> None:
    assert worth_keeping(divergences) == kept
