from __future__ import annotations

import itertools

import numpy as np
import pytest

from evoquant.errors import RunError
from evoquant.search import (
    AdditiveModel,
    Evaluated,
    GeneFeatures,
    GenomeDomain,
    GreedySearch,
    Nsga2Search,
    ParetoArchive,
    RandomSearch,
    ReferencePoint,
    Surrogate,
    SurrogateSearch,
    rank_correlation,
)
from evoquant.search.acquisition import QUADRATURE_NODES, ExpectedImprovement
from evoquant.search.surrogate import Scale

BITS = np.array([4.0, 5.0, 6.0, 8.0])
GROUPS = 6


class Network:
    """A stand-in for a network: noise falls by a factor of 4 for each bit, neighbours interact, the error saturates."""

    def __init__(self, groups=GROUPS, seed=0):
        rng = np.random.default_rng(seed)
        self.domain = GenomeDomain.grid([len(BITS)] * groups)
        self.sensitivity = rng.lognormal(0.0, 1.2, groups)
        self.size = rng.lognormal(0.0, 1.0, groups)

    def error(self, genomes):
        amplitude = np.sqrt(self.sensitivity * 4.0 ** (4.0 - BITS[genomes]))
        interaction = 0.4 * (amplitude[:, 1:] * amplitude[:, :-1]).sum(axis=1)
        total = 0.1 * ((amplitude**2).sum(axis=1) + interaction)
        return 5.0 * (1.0 - np.exp(-total / 5.0))

    def cost(self, genomes):
        return (self.size * BITS[genomes]).sum(axis=1) / (self.size.sum() * 8.0)

    def objectives(self, genomes):
        return np.column_stack([self.error(genomes), self.cost(genomes)])

    def known(self, genomes):
        return np.column_stack([np.full(len(genomes), np.nan), self.cost(genomes)])

    def prior(self):
        finest = self.domain.upper_bounds
        tables = []
        for group in range(self.domain.n_groups):
            probes = np.repeat(finest[None], len(BITS), axis=0)
            probes[:, group] = np.arange(len(BITS))
            tables.append(self.error(probes) - self.error(finest[None]))
        return AdditiveModel(self.domain, tuple(tables))

    def run(self, search, reference):
        archive = ParetoArchive(reference)
        while batch := search.ask():
            values = self.objectives(np.array([candidate.genes for candidate in batch]))
            search.tell(values)
            archive.add(
                Evaluated(c.id, c.key, c.genes, tuple(row)) for c, row in zip(batch, values.tolist(), strict=True)
            )
        return archive


@pytest.fixture(scope="module")
def network():
    return Network()


def sample(network, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, network.domain.upper_bounds + 1, size=(count, network.domain.n_genes))


def test_predictions_rank_unseen_genomes(network):
    genomes, unseen = sample(network, 60), sample(network, 200, seed=1)
    prior = network.prior()
    features = GeneFeatures.of(network.domain, prior)
    model = Surrogate(features, genomes, network.error(genomes), prior=prior)
    assert rank_correlation(model.predict(unseen).value(), network.error(unseen)) > 0.97
    assert model.loo_rank_correlation > 0.95
    blind = Surrogate(GeneFeatures.of(network.domain, None), genomes, network.error(genomes))
    assert rank_correlation(blind.predict(unseen).value(), network.error(unseen)) > 0.9


def test_uncertainty_is_small_where_seen_and_covers_the_truth(network):
    genomes, unseen = sample(network, 40), sample(network, 400, seed=1)
    model = Surrogate(GeneFeatures.of(network.domain, None), genomes, network.error(genomes))
    seen, new = model.predict(genomes), model.predict(unseen)
    assert seen.deviation.mean() < 0.7 * new.deviation.mean()
    assert seen.value() == pytest.approx(network.error(genomes), rel=0.3)
    distance = np.abs(new.mean - model.scale.forward(network.error(unseen))) / new.deviation
    assert 0.8 <= (distance < 2.0).mean() <= 1.0
    assert (new.value(1.0) > new.value()).all()


def test_left_out_predictions_are_those_of_a_model_without_the_point(network):
    genomes = sample(network, 12)
    values = network.cost(genomes)  # modelled as it is, so the trend is a constant
    features = GeneFeatures.of(network.domain, None)
    model = Surrogate(features, genomes, values)
    fit = model._fit
    lower = np.tril(fit.factor[0])
    covariance = lower @ lower.T
    rest = np.arange(1, 12)
    expected = covariance[0, rest] @ np.linalg.solve(covariance[np.ix_(rest, rest)], fit.target[rest])
    assert fit.left_out[0] == pytest.approx(expected)


def test_few_and_constant_values_can_be_modelled(network):
    genomes = sample(network, 4)
    model = Surrogate(GeneFeatures.of(network.domain, None), genomes, np.ones(4))
    assert model.predict(genomes).value() == pytest.approx(np.ones(4))
    assert model.loo_rank_correlation == 0.0


def test_scales():
    assert Scale.of(np.array([0.01, 0.02, 0.05, 0.1, 3.0, 9.0])).is_log
    assert not Scale.of(np.linspace(1.0, 2.0, 10)).is_log
    assert not Scale.of(np.array([-1.0, 0.0, 50.0])).is_log
    scale = Scale.of(np.array([0.0, 0.1, 0.2, 30.0]))
    assert scale.backward(scale.forward(np.array([0.0, 0.1, 30.0]))) == pytest.approx([0.0, 0.1, 30.0])


def test_probability_below():
    network = Network()
    genomes = sample(network, 30)
    prediction = Surrogate(GeneFeatures.of(network.domain, None), genomes, network.cost(genomes)).predict(genomes)
    assert (prediction.probability_below(10.0) > 0.999).all()
    assert (prediction.probability_below(-10.0) < 0.001).all()


def test_rank_correlation_against_the_textbook():
    # d = (0, 1, -1, 0): 1 - 6 · 2 / (4 · 15)
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1.0]), np.array([2.0])) == 0.0


REFERENCE = ReferencePoint((1.0, 1.0), (0.0, 0.0))


def certain(*points):
    return np.array([[point] * len(QUADRATURE_NODES) for point in points])


def test_improvement_of_certain_points_by_hand():
    improvement = ExpectedImprovement(REFERENCE, [[0.5, 0.5]])
    gains = [improvement.gain(outcome) for outcome in certain((0.25, 0.75), (0.5, 0.5), (0.6, 0.9), (0.0, 0.0), (2, 0))]
    assert gains == pytest.approx([0.25 * 0.25, 0.0, 0.0, 0.75, 0.0])


def test_expected_improvement_against_sampling():
    improvement = ExpectedImprovement(REFERENCE, [[0.2, 0.8], [0.5, 0.5], [0.8, 0.1]])
    mean, deviation = 0.45, 0.02
    outcomes = np.array([[mean + node * deviation, 0.3] for node in QUADRATURE_NODES])
    draws = np.random.default_rng(0).normal(mean, deviation, 4000)
    old = REFERENCE.hypervolume([[0.2, 0.8], [0.5, 0.5], [0.8, 0.1]])
    new = [REFERENCE.hypervolume([[0.2, 0.8], [0.5, 0.5], [0.8, 0.1], [draw, 0.3]]) for draw in draws[:1500]]
    assert improvement.gain(outcomes) == pytest.approx(np.mean(new) - old, rel=0.03)


def test_a_batch_is_chosen_one_after_the_other():
    improvement = ExpectedImprovement(REFERENCE, [[0.9, 0.9]])
    outcomes = certain((0.3, 0.3), (0.31, 0.3), (0.1, 0.7), (0.95, 0.95), (0.7, 0.1))
    assert improvement.choose(outcomes, np.ones(5), 3) == [0, 2, 4]
    again = ExpectedImprovement(REFERENCE, [[0.9, 0.9]])
    assert again.choose(outcomes, np.array([0.0, 1.0, 1.0, 1.0, 1.0]), 9) == [1, 2, 4]


@pytest.fixture(scope="module")
def truth(network):
    """The front of all 4,096 genomes, and its hypervolume."""
    genomes = np.array(list(itertools.product(range(len(BITS)), repeat=GROUPS)))
    values = network.objectives(genomes)
    seeds = network.objectives(uniform_seeds(GROUPS))
    archive = ParetoArchive(ReferencePoint.derive(seeds))
    keys = [network.domain.phenotype(genes) for genes in genomes]
    archive.add(
        Evaluated(i, keys[i], genes, tuple(row))
        for i, (genes, row) in enumerate(zip(genomes, values.tolist(), strict=True))
    )
    return archive


def uniform_seeds(groups):
    return np.repeat(np.arange(len(BITS))[:, None], groups, axis=1)


def test_two_percent_of_the_evaluations_find_the_front_of_an_enumerated_space(network, truth):
    search = SurrogateSearch(
        network.domain,
        n_objectives=2,
        seed=0,
        evaluations=82,  # 2 % of 4,096
        population_size=12,
        seeds=list(uniform_seeds(GROUPS)),
        prior=network.prior(),
        known=network.known,
        inner_generations=15,
    )
    found = network.run(search, truth.reference)
    assert found.hypervolume >= 0.99 * truth.hypervolume
    true_front = {entry.key for entry in truth.front}
    recall = len(true_front & {entry.key for entry in found.front}) / len(true_front)
    assert recall >= 0.5
    assert search.reports[-1].rank_correlation > 0.9
    assert search.reports[-1].evaluations == 82


def test_what_others_have_evaluated_is_learnt_and_not_proposed_again(network):
    settings = {"n_objectives": 2, "seed": 0, "population_size": 6, "evaluations": 30, "inner_generations": 5}
    search = SurrogateSearch(network.domain, seeds=list(uniform_seeds(GROUPS)), **settings)
    batch = search.ask()
    with pytest.raises(RunError, match="candidates wait for their answers"):
        search.learn(np.zeros((1, GROUPS), dtype=np.int64), [[1.0, 1.0]])
    search.tell(network.objectives(np.array([candidate.genes for candidate in batch])))
    foreign = np.random.default_rng(7).integers(0, len(BITS), (40, GROUPS))
    search.learn(foreign, network.objectives(foreign))
    known = {network.domain.phenotype(genes) for genes in foreign}
    proposed = len(batch)
    while batch := search.ask():
        assert not known & {candidate.key for candidate in batch}
        proposed += len(batch)
        search.tell(network.objectives(np.array([candidate.genes for candidate in batch])))
    assert proposed == 30
    assert search.reports[1].evaluations > 46


def test_it_beats_the_others_at_equal_cost():
    network = Network(groups=24, seed=1)
    seeds = list(uniform_seeds(24))
    reference = ReferencePoint.derive(network.objectives(np.array(seeds)))
    shared = {"n_objectives": 2, "seed": 0, "evaluations": 80, "seeds": seeds}
    assisted = SurrogateSearch(
        network.domain, **shared, prior=network.prior(), known=network.known, inner_generations=15
    )
    reached = network.run(assisted, reference).hypervolume
    for other in (Nsga2Search, RandomSearch, GreedySearch):
        assert reached > network.run(other(network.domain, **shared), reference).hypervolume


def test_noise_without_structure_leads_to_exploration(network):
    rng = np.random.default_rng(0)
    search = SurrogateSearch(network.domain, n_objectives=2, seed=0, evaluations=100, inner_generations=3)
    while batch := search.ask():
        search.tell(rng.random((len(batch), 2)))
    assert search.reports[-1].exploration > 0.3
    assert abs(search.reports[-1].rank_correlation) < 0.6


def test_constraints_are_learnt(network):
    limit = 0.75
    search = SurrogateSearch(
        network.domain, n_objectives=2, seed=0, evaluations=80, known=network.known, inner_generations=8
    )
    feasible = []
    while batch := search.ask():
        values = network.objectives(np.array([candidate.genes for candidate in batch]))
        search.tell(values, values[:, 1] - limit)
        feasible += (values[:, 1] <= limit).tolist()
    assert np.mean(feasible[-32:]) > 0.8


def test_greedy_lowers_the_cheapest_group_first():
    domain = GenomeDomain.grid([2, 2, 2])
    prices = np.array([5.0, 1.0, 3.0])
    search = GreedySearch(domain, n_objectives=2, seed=0)
    asked = []
    while batch := search.ask():
        genomes = np.array([candidate.genes for candidate in batch])
        search.tell(np.column_stack([((1 - genomes) * prices).sum(axis=1), 1.0 + genomes.sum(axis=1)]))
        asked += genomes.tolist()
    assert asked == [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_greedy_follows_a_ladder():
    domain = GenomeDomain.grid([9, 9])
    ladder = [np.array([0, 0]), np.array([0, 4]), np.array([8, 8])]
    search = GreedySearch(domain, n_objectives=2, seed=0, ladder=ladder)
    asked = []
    while batch := search.ask():
        genomes = np.array([candidate.genes for candidate in batch])
        search.tell(np.column_stack([-genomes.sum(axis=1), genomes.sum(axis=1)]))
        asked += genomes.tolist()
    assert {first for first, _ in asked} == {0, 8}
    assert {second for _, second in asked} == {0, 4, 8}


def proposing(network, **options):
    settings = {"n_objectives": 2, "seed": 0, "population_size": 1, "inner_generations": 8, "known": network.known}
    return SurrogateSearch(
        network.domain,
        seeds=list(uniform_seeds(GROUPS)),
        prior=network.prior(),
        reference=REFERENCE,
        **settings,
        **options,
    )


def told(search, network, batch):
    search.tell(network.objectives(np.array([candidate.genes for candidate in batch])))


def test_a_proposal_beside_rivals_promises_less(network):
    search = proposing(network)
    batch, promise = search.propose(np.empty((0, 2)), most=100)
    assert promise == np.inf, "nothing is known yet"
    assert len(batch) == len(BITS), "the seeds alone"
    told(search, network, batch)
    none = np.empty((0, 2))
    _, alone = search.propose(none, most=100)
    rivals = network.objectives(uniform_seeds(GROUPS)) * [0.5, 0.97]
    _, beside = search.propose(rivals, most=100)
    unbeatable = [[0.0, 0.0]]
    _, nothing = search.propose(np.array(unbeatable), most=100)
    assert alone > beside > nothing == 0.0


def test_a_withdrawn_batch_costs_nothing_and_may_come_again(network):
    search = proposing(network)
    first, _ = search.propose(np.empty((0, 2)), most=3)
    again, _ = search.propose(np.empty((0, 2)), most=100)
    assert [candidate.key for candidate in again][:3] == [candidate.key for candidate in first]
    told(search, network, again)
    batch, _ = search.propose(np.empty((0, 2)), most=5)
    assert len(batch) == 5
    assert [candidate.id for candidate in batch] == [4, 5, 6, 7, 8]


def test_suggestions_are_among_what_is_judged(network):
    truly_good = np.array([0, 3, 1, 2, 0, 3])
    search = proposing(network, suggestions=[truly_good])
    seen = []
    search._best_new = lambda genomes, predicted, rank=search._best_new: (
        seen.append(genomes) or rank(genomes, predicted)
    )
    told(search, network, search.propose(np.empty((0, 2)), most=100)[0])
    search.propose(np.empty((0, 2)), most=100)
    assert (seen[0] == truly_good).all(axis=1).any()


def test_with_a_prior_the_first_batch_is_the_seeds_alone(network):
    seeds = sample(network, 5)
    settings = {"n_objectives": 2, "seed": 0, "population_size": 12, "seeds": seeds}
    informed = SurrogateSearch(network.domain, prior=network.prior(), **settings).ask()
    assert np.array_equal([candidate.genes for candidate in informed], seeds)
    assert len(SurrogateSearch(network.domain, **settings).ask()) == 12
