"""Seeds from integer programming: the least additive error under a budget of cost, over a sweep of budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import ConfigurationError
from evoquant.search.additive import AdditiveModel, check_table
from evoquant.search.domain import Floats, Genes

_BINS = 50_000
"""Resolution of a budget: costs are rounded up to this fraction of the range of possible costs."""


def milp_seeds(
    model: AdditiveModel, costs: Mapping[str, Sequence[Floats]], *, budgets: int | Sequence[float] = 8
) -> list[tuple[str, Genes]]:
    """Solve ``min sum error(group, choice)`` subject to ``sum cost(group, choice) <= budget`` for each cost.

    With one budget the integer program is a multiple-choice knapsack, and dynamic programming solves it for all budgets
    at once, in a fraction of a second and the same everywhere; a branch-and-bound solver with a time limit would give
    other seeds on a slower machine.

    Args:
        model: Additive errors.
        costs: By name of the cost, for each group the cost of each of its choices.
        budgets: Shares of the way from the least to the greatest useful cost, in [0, 1], or how many such shares,
            evenly spaced, the two ends left out.

    Returns:
        Named genomes, cost by cost and budget by budget; equal ones only once. No genome exceeds its budget, and none
        with less error fits one that is smaller by (number of groups) / 50,000 of the range.

    Raises:
        ConfigurationError: If a table does not fit the domain or a share lies outside [0, 1].

    References:
        H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack Problems", Springer, 2004, section 11.5,
        https://doi.org/10.1007/978-3-540-24777-7.
    """
    shares = np.linspace(0.0, 1.0, budgets + 2)[1:-1] if isinstance(budgets, int) else np.asarray(budgets, dtype=float)
    if ((shares < 0.0) | (shares > 1.0)).any():
        raise ConfigurationError(f"Budgets are shares in [0, 1], but got {shares.tolist()}.")
    found: dict[bytes, tuple[str, Genes]] = {}
    for name, table in costs.items():
        check_table(f"cost {name}", table, model.domain)
        solutions = solve_knapsack(model.errors, table, shares.tolist())
        for share, chosen in zip(shares.tolist(), solutions, strict=True):
            pairs = zip(model.domain.choices, chosen.tolist(), strict=True)
            genes = np.concatenate([choices[index] for choices, index in pairs])
            found.setdefault(genes.tobytes(), (f"milp_{name}_{100 * share:.0f}", genes))
    return list(found.values())


def solve_knapsack(
    errors: Sequence[Floats], costs: Sequence[Floats], shares: Sequence[float]
) -> list[NDArray[np.int64]]:
    """For each budget the index of the choice of each group with the least sum of errors.

    Args:
        errors: For each group the error of each choice.
        costs: For each group the cost of each choice.
        shares: Budgets as shares of the way from the least cost to that of the choices with the least errors.
    """
    kept = [_efficient(error, cost) for error, cost in zip(errors, costs, strict=True)]
    spans = [float(cost[own].max() - cost.min()) for own, cost in zip(kept, costs, strict=True)]
    unit = max(sum(spans), 1e-300) / _BINS
    least = np.zeros(_BINS + 1)
    taken: list[NDArray[np.int64]] = []
    bins: list[list[int]] = []
    for own, error, cost in zip(kept, errors, costs, strict=True):
        steps = np.ceil((cost[own] - cost.min()) / unit - 1e-6).astype(np.int64).clip(0, _BINS + 1).tolist()
        best = least + error[own[0]]
        choice = np.zeros(_BINS + 1, dtype=np.int64)
        for position, step in enumerate(steps[1:], start=1):
            reached = least[: _BINS + 1 - step] + error[own[position]]
            better = reached < best[step:]
            best[step:][better] = reached[better]
            choice[step:][better] = position
        least = best
        taken.append(choice)
        bins.append(steps)
    return [_best_within(kept, taken, bins, costs, share) for share in shares]


def _best_within(
    kept: list[NDArray[np.int64]],
    taken: list[NDArray[np.int64]],
    bins: list[list[int]],
    costs: Sequence[Floats],
    share: float,
) -> NDArray[np.int64]:
    """Look a little beyond the budget in bins, since costs are rounded up, for what the exact costs still allow."""
    least = sum(float(cost.min()) for cost in costs)
    finest = sum(float(cost[own].max()) for own, cost in zip(kept, costs, strict=True))
    budget = least + share * (finest - least) + 1e-9 * max(abs(finest), abs(least))
    inside = int(share * _BINS + 1e-6)
    for beyond in range(len(kept), 0, -1):
        chosen = _walk_back(kept, taken, bins, min(_BINS, inside + beyond))
        if sum(float(cost[index]) for cost, index in zip(costs, chosen.tolist(), strict=True)) <= budget:
            return chosen
    return _walk_back(kept, taken, bins, inside)


def _walk_back(
    kept: list[NDArray[np.int64]], taken: list[NDArray[np.int64]], bins: list[list[int]], budget: int
) -> NDArray[np.int64]:
    chosen = np.empty(len(kept), dtype=np.int64)
    for group in reversed(range(len(kept))):
        position = int(taken[group][budget])
        chosen[group] = kept[group][position]
        budget -= bins[group][position]
    return chosen


def _efficient(errors: Floats, costs: Floats) -> NDArray[np.int64]:
    """Indices of the choices that no other one beats, cheapest first."""
    order = np.lexsort([np.arange(len(errors)), errors, costs])
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(errors[order])[:-1]])
    return np.asarray(order[errors[order] < best_before], dtype=np.int64)
