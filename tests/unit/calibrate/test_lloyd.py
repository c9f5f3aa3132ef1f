"""Levels by dynamic programming: against all subsets, and with weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from evoquant.calibrate.lloyd import WeightedValues, best_subset, best_subset_by_arrays, lloyd_params
from evoquant.quant import fake_quantize


@pytest.mark.parametrize("find", [best_subset, best_subset_by_arrays])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_subset_is_better(seed: int, find: Callable[..., tuple[list[int], float]]) -> None:
    rng = np.random.default_rng(seed)
    mass, offset = rng.random(9), rng.random(9) - 0.5
    at = np.arange(9) + offset
    first, second = mass * at, mass * (at**2 + 0.1)
    levels, cost = find(mass, first, second, 3)

    def error(subset: tuple[int, ...]) -> float:
        each = [[second[i] - 2 * level * first[i] + level**2 * mass[i] for level in subset] for i in range(9)]
        return sum(min(row) for row in each)

    assert cost == pytest.approx(min(error(subset) for subset in combinations(range(9), 3)), abs=1e-9)
    assert error(tuple(levels)) <= cost + 1e-9


def test_weights_draw_levels_to_what_costs() -> None:
    """Where errors cost a hundred times as much the error is smaller, and larger elsewhere."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    is_dear = x > 1.0
    errors = []
    for weights in (torch.ones_like(x), torch.where(is_dear, 100.0, 1.0)):
        params = lloyd_params(WeightedValues.of(x, weights, float(x.min()), float(x.max())), 4)
        square = (fake_quantize(x, params) - x).square()
        errors.append((float(square[is_dear].mean()), float(square[~is_dear].mean())))
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[1][1] > errors[0][1]


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 0.0), (0.0, 3.0), (-2.0, 0.0)])
def test_ranges_without_one_side(lowest: float, highest: float) -> None:
    """All levels are there, zero among them, also where all values are zero."""
    x = torch.linspace(lowest, highest, 50)
    params = lloyd_params(WeightedValues.of(x, torch.ones_like(x), lowest, highest), 5)
    assert params.code_count == 32
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0
    assert float((fake_quantize(x, params) - x).abs().max()) < 0.1
