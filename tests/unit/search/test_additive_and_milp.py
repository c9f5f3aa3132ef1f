from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from evoquant.errors import ConfigurationError
from evoquant.search import AdditiveModel, GenomeDomain, choice_indices, milp_seeds
from evoquant.search.milp import solve_knapsack

DOMAIN = GenomeDomain.grid([3, 2, 4, 1, 2, 3], n_axes=2)


def tables(seed, sizes):
    rng = np.random.default_rng(seed)
    return [rng.random(size) for size in sizes]


@given(st.integers(0, 10**6))
def test_choices_are_found_again(seed):
    rng = np.random.default_rng(seed)
    wanted = np.array([[rng.integers(len(choices)) for choices in DOMAIN.choices] for _ in range(5)])
    genomes = np.array([np.concatenate([c[i] for c, i in zip(DOMAIN.choices, row, strict=True)]) for row in wanted])
    assert (choice_indices(DOMAIN, genomes) == wanted).all()


def test_predictions_are_sums():
    errors = tuple(tables(0, [6, 4, 6]))
    model = AdditiveModel(DOMAIN, errors)
    genes = np.array([[2, 1, 3, 0, 0, 2], [0, 0, 0, 0, 0, 0]])
    assert model.predict(genes) == pytest.approx(
        [errors[0][5] + errors[1][3] + errors[2][2], sum(e[0] for e in errors)]
    )
    assert model.importance.mean() == pytest.approx(1.0)
    flat = AdditiveModel(DOMAIN, tuple(np.zeros(n) for n in (6, 4, 6)))
    assert (flat.importance == 1.0).all()


def test_tables_must_fit():
    with pytest.raises(ConfigurationError, match=r"expected \[6, 4, 6\] values by group, but got \[6, 4\]"):
        AdditiveModel(DOMAIN, tuple(tables(0, [6, 4])))
    with pytest.raises(ConfigurationError, match="finite"):
        AdditiveModel(DOMAIN, (np.full(6, np.nan), np.zeros(4), np.zeros(6)))
    choices = (np.array([[0], [2]]),)
    gapped = GenomeDomain(np.array([2]), 1, choices, ((0,),), repair=lambda g: g - g % 2, phenotype=lambda g: str(g))
    with pytest.raises(ConfigurationError, match="Group 0: a genome has genes that stand for no choice"):
        choice_indices(gapped, np.array([[1]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_knapsack_against_trying_everything(seed, share):
    rng = np.random.default_rng(seed)
    sizes = [4, 3, 5, 2]
    errors = [rng.random(n) for n in sizes]
    costs = [rng.integers(1, 20, size=n).astype(float) for n in sizes]
    [chosen] = solve_knapsack(errors, costs, [share])
    everything = list(itertools.product(*map(range, sizes)))
    least = sum(cost.min() for cost in costs)
    finest = sum(c[np.lexsort([c, e])[0]] for c, e in zip(costs, errors, strict=True))
    budget = least + share * (finest - least)

    def total(table, picks):
        return sum(values[index] for values, index in zip(table, picks, strict=True))

    assert total(costs, chosen) <= budget + 1e-9
    slightly_less = budget - 4 / 50_000 * (finest - least) - 1e-9
    feasible = [total(errors, picks) for picks in everything if total(costs, picks) <= slightly_less]
    if feasible:
        assert total(errors, chosen) <= min(feasible) + 1e-9


def test_knapsack_is_near_the_linear_bound_for_many_groups():
    rng = np.random.default_rng(7)
    groups, choices = 60, 12
    errors = [np.sort(rng.lognormal(0, 1.5, choices))[::-1].copy() for _ in range(groups)]
    costs = [np.sort(rng.lognormal(0, 1.0, choices)) for _ in range(groups)]
    [chosen] = solve_knapsack(errors, costs, [0.4])
    found = sum(e[i] for e, i in zip(errors, chosen, strict=True))
    least, finest = sum(c[0] for c in costs), sum(c[-1] for c in costs)
    one_each = np.kron(np.eye(groups), np.ones(choices))
    bound = linprog(
        np.concatenate(errors),
        A_ub=np.concatenate(costs)[None],
        b_ub=[least + 0.4 * (finest - least)],
        A_eq=one_each,
        b_eq=np.ones(groups),
    ).fun
    assert bound <= found <= 1.01 * bound


def test_seeds_sweep_the_budgets():
    domain = GenomeDomain.grid([4] * 10)
    rng = np.random.default_rng(0)
    errors = tuple(w * np.array([9.0, 4.0, 1.0, 0.0]) for w in rng.random(10))
    costs = {"memory": [np.arange(4.0)] * 10, "energy": [w * np.arange(4.0) for w in rng.random(10)]}
    model = AdditiveModel(domain, errors)
    seeds = milp_seeds(model, costs, budgets=[0.0, 0.25, 0.5, 0.75, 1.0])
    memory = [genes for name, genes in seeds if name.startswith("milp_memory")]
    assert [name for name, _ in seeds][:2] == ["milp_memory_0", "milp_memory_25"]
    assert [int(genes.sum()) for genes in memory] == [0, 7, 15, 22, 30]
    predicted = model.predict(np.array(memory))
    assert (np.diff(predicted) < 0).all()
    assert len({genes.tobytes() for _, genes in seeds}) == len(seeds)
    assert len(milp_seeds(model, {"memory": costs["memory"]}, budgets=3)) == 3


def test_bad_budgets_and_tables():
    model = AdditiveModel(DOMAIN, tuple(tables(0, [6, 4, 6])))
    with pytest.raises(ConfigurationError, match=r"shares in \[0, 1\]"):
        milp_seeds(model, {}, budgets=[1.5])
    with pytest.raises(ConfigurationError, match="cost memory: expected"):
        milp_seeds(model, {"memory": tables(0, [6, 4])})
