"""A whole search on a real space, with objectives that stand in for an evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from evoquant.config import validate
from evoquant.resources import folder
from evoquant.search import AdditiveModel, GenomeDomain, Nsga2Search, SurrogateSearch, choice_indices, milp_seeds
from evoquant.space import SearchSpace, SpaceSpec, structured_seeds


@pytest.fixture(scope="module")
def space(graph):
    return SearchSpace.build(validate(SpaceSpec, folder("search_spaces") / "mobile_hybrid.yaml"), graph)


def size(space, genes):
    plan = space.decode(genes)
    return sum(op.weight_count * plan[op.name].weight_bits for op in space.graph.ops)


def noise(config):
    return 4.0**-config.weight_bits + 4.0**-config.activation_bits


def error(space, genes):
    return sum(noise(config) for config in space.decode(genes).values())


def objectives(space, batch):
    return np.array([[error(space, candidate.genes), size(space, candidate.genes)] for candidate in batch])


def table(space, value):
    return tuple(
        np.array([sum(value(name, config) for name, config in plan.items()) for plan in space.choice_plans(index)])
        for index in range(len(space.groups))
    )


def test_choices_and_their_plans_agree(space):
    domain = GenomeDomain.of_space(space)
    rng = np.random.default_rng(0)
    genes = space.repair(rng.integers(0, space.upper_bounds + 1))
    plan = space.decode(genes)
    for group, choice in enumerate(choice_indices(domain, genes[None])[0].tolist()):
        for name, config in space.choice_plans(group)[choice].items():
            assert plan[name] == config


def test_every_proposal_is_canonical_and_new(space):
    seeds = [genes for _, genes in structured_seeds(space)]
    search = Nsga2Search(GenomeDomain.of_space(space), n_objectives=2, seed=0, evaluations=120, seeds=seeds)
    keys = set()
    while batch := search.ask():
        for candidate in batch:
            assert (space.repair(candidate.genes) == candidate.genes).all()
            assert candidate.key == space.phenotype_hash(candidate.genes)
            keys.add(candidate.key)
        search.tell(objectives(space, batch))
    assert len(keys) == 120


def test_seeds_of_an_integer_program_and_a_surrogate_on_the_space(space):
    domain = GenomeDomain.of_space(space)
    prior = AdditiveModel(domain, table(space, lambda _, config: noise(config)))
    counts = {op.name: op.weight_count for op in space.graph.ops}
    sizes = table(space, lambda name, config: float(counts[name] * config.weight_bits))
    named = milp_seeds(prior, {"size": sizes}, budgets=4)
    errors = [error(space, genes) for _, genes in named]
    assert errors == sorted(errors, reverse=True)
    assert prior.predict(np.array([genes for _, genes in named])) == pytest.approx(errors)
    search = SurrogateSearch(
        domain,
        n_objectives=2,
        seed=0,
        evaluations=40,
        seeds=[genes for _, genes in named],
        prior=prior,
        inner_population=16,
        inner_generations=4,
    )
    while batch := search.ask():
        search.tell(objectives(space, batch))
    assert search.reports[-1].evaluations == 40
    assert search.reports[-1].rank_correlation > 0.8
