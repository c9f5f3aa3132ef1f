from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import ConfigurationError
from evoquant.search import (
    BlockCrossover,
    GenomeDomain,
    RunMutation,
    StepMutation,
    UniformCrossover,
    VariationRates,
    random_genomes,
)

SIZES = [3, 1, 4, 2, 5, 2, 1, 1, 3, 3, 2, 2]
DOMAIN = GenomeDomain.grid(SIZES, n_axes=2)
BOUNDS = np.array(SIZES) - 1
seeds = st.integers(0, 2**31)


def genomes(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, BOUNDS + 1), rng.integers(0, BOUNDS + 1), rng


@given(seeds)
def test_uniform_crossover_keeps_the_genes_of_a_group_together(seed):
    first, second, rng = genomes(seed)
    one, two = UniformCrossover(2)(first, second, rng)
    for group in range(6):
        part = slice(2 * group, 2 * group + 2)
        pair = {tuple(one[part]), tuple(two[part])}
        assert pair == {tuple(first[part]), tuple(second[part])}


@given(seeds)
def test_block_crossover_swaps_whole_blocks(seed):
    rng = np.random.default_rng(seed)
    first, second = np.zeros(12, dtype=int), np.ones(12, dtype=int)
    blocks = ((0, 3), (1, 2), (4, 5))
    one, two = BlockCrossover(blocks, 2)(first, second, rng)
    assert (one + two == 1).all()
    for block in blocks:
        assert len({value for group in block for value in one[2 * group : 2 * group + 2]}) == 1


@given(seeds)
def test_step_mutation_moves_by_one_within_bounds(seed):
    genes, _, rng = genomes(seed)
    before = genes.copy()
    after = StepMutation(DOMAIN, 0.3)(genes, rng)
    assert (genes == before).all()
    assert (np.abs(after - before) <= 1).all()
    assert (after != before).any()
    assert ((after >= 0) & (after <= BOUNDS)).all()
    changed = (after != before).reshape(-1, 2).sum(axis=1)
    assert (changed <= 1).all()


def test_step_mutation_changes_its_share_of_groups():
    domain = GenomeDomain.grid([9] * 400)
    genes = np.full(400, 4)
    counts = [(StepMutation(domain, 0.1)(genes, np.random.default_rng(i)) != genes).sum() for i in range(50)]
    assert np.mean(counts) == pytest.approx(40, abs=3)


@given(seeds)
def test_run_mutation_makes_the_same_step_for_neighbours(seed):
    domain = GenomeDomain.grid([5, 5] * 9, n_axes=2)
    genes = np.full(18, 2)
    after = RunMutation(domain)(genes, np.random.default_rng(seed)).reshape(9, 2)
    steps = after - 2
    groups, axes = np.nonzero(steps)
    assert len(set(axes)) == 1
    assert len(set(steps[groups, axes])) == 1
    assert (np.diff(groups) == 1).all()
    assert 2 <= len(groups) <= 3


def test_nothing_moves_where_nothing_can():
    domain = GenomeDomain.grid([1, 1])
    rng = np.random.default_rng(0)
    for mutation in (StepMutation(domain, 1.0), RunMutation(domain)):
        assert mutation(np.zeros(2, dtype=int), rng).tolist() == [0, 0]


def test_random_genomes_span_the_levels():
    domain = GenomeDomain.grid([5] * 100)
    means = random_genomes(domain, 400, np.random.default_rng(0)).mean(axis=1)
    assert means.min() < 0.9
    assert means.max() > 3.1
    assert means.mean() == pytest.approx(2.0, abs=0.1)
    assert means[::2].std() < 0.3 * means[1::2].std()


def test_rates_are_checked():
    with pytest.raises(ConfigurationError, match="block rate must lie in"):
        VariationRates(block=1.5)
    with pytest.raises(ConfigurationError, match="groups of 2"):
        GenomeDomain.grid([2, 3, 4], n_axes=2)
