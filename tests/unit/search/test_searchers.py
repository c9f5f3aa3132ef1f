"""What every search must obey; a newly registered one is tested without a change here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evoquant.errors import ConfigurationError, RunError, UnknownNameError
from evoquant.search import SEARCHERS, Evaluated, GenomeDomain, ParetoArchive

SIZES = (4, 3, 5, 3, 4, 3, 5, 4)
WEIGHTS = np.array([3.0, 1.0, 0.2, 2.0, 0.5, 4.0, 0.1, 1.5])
TOP = np.array(SIZES) - 1


def error_and_cost(genes):
    """Two opposed objectives: fewer steps cost less, and err more where the weight is large."""
    missing = (TOP - genes) / TOP
    return [float((WEIGHTS * missing**2).sum()), float(genes.sum())]


def evaluate(batch):
    return np.array([error_and_cost(candidate.genes) for candidate in batch])


def run(search, evaluate_batch=evaluate, violations=None, batches=10_000):
    """All candidates and objectives of a search."""
    asked, told = [], []
    for _ in range(batches):
        batch = search.ask()
        if not batch:
            break
        objectives = evaluate_batch(batch)
        search.tell(objectives, None if violations is None else violations(batch))
        asked += batch
        told += objectives.tolist()
    return asked, told


@pytest.fixture
def domain():
    return GenomeDomain.grid(SIZES)


QUICK = {"surrogate": {"inner_population": 12, "inner_generations": 4}}


def expected(name):
    """Candidates of a budget of 60: the greedy descent of this domain ends earlier by itself."""
    return 43 if name == "greedy" else 60


@pytest.mark.parametrize("name", sorted(SEARCHERS))
class TestSearcher:
    def make(self, name, domain, **options):
        return SEARCHERS[name](
            domain, **{"n_objectives": 2, "seed": 3, "evaluations": 60, **QUICK.get(name, {}), **options}
        )

    def test_the_seed_decides_everything(self, name, domain):
        first, _ = run(self.make(name, domain))
        np.random.default_rng().random(5)
        second, _ = run(self.make(name, domain))
        other, _ = run(self.make(name, domain, seed=4))
        assert [c.key for c in first] == [c.key for c in second]
        if name != "greedy":  # it has nothing to choose at random
            assert [c.key for c in first] != [c.key for c in other]

    def test_global_random_state_is_neither_read_nor_moved(self, name, domain):
        np.random.seed(1)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        first, _ = run(self.make(name, domain))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
        np.random.seed(2)  # noqa: NPY002
        second, _ = run(self.make(name, domain))
        assert [c.key for c in first] == [c.key for c in second]

    def test_genomes_stay_within_bounds_and_ids_count(self, name, domain):
        asked, _ = run(self.make(name, domain))
        genomes = np.array([candidate.genes for candidate in asked])
        assert (genomes >= 0).all()
        assert (genomes <= domain.upper_bounds).all()
        assert np.issubdtype(genomes.dtype, np.integer)
        assert [candidate.id for candidate in asked] == list(range(len(asked)))

    def test_no_phenotype_is_proposed_twice(self, name):
        coarse = GenomeDomain.grid(SIZES)
        domain = GenomeDomain(
            coarse.upper_bounds,
            1,
            coarse.choices,
            coarse.blocks,
            repair=lambda genes: genes - genes % 2,
            phenotype=lambda genes: ",".join(map(str, (genes // 2).tolist())),
        )
        asked, _ = run(self.make(name, domain, evaluations=200))
        assert len({candidate.key for candidate in asked}) == len(asked)
        assert all((candidate.genes % 2 == 0).all() for candidate in asked)

    def test_the_budget_is_kept(self, name, domain):
        for evaluations in (1, 7, 60):
            asked, _ = run(self.make(name, domain, evaluations=evaluations))
            assert len(asked) <= evaluations if name == "greedy" else len(asked) == evaluations

    def test_seeds_come_first_and_once(self, name, domain):
        seeds = [TOP.copy(), np.zeros_like(TOP), TOP.copy(), TOP // 2]
        asked, _ = run(self.make(name, domain, seeds=seeds))
        assert [c.genes.tolist() for c in asked[:3]] == [TOP.tolist(), [0] * 8, (TOP // 2).tolist()]

    def test_a_replayed_search_goes_on_as_if_never_stopped(self, name, domain):
        whole, told = run(self.make(name, domain))
        for kept in (1, 2, 3):
            again = self.make(name, domain)
            replayed = 0
            for _ in range(kept):
                batch = again.ask()
                if not batch:
                    break
                again.tell(np.array(told[replayed : replayed + len(batch)]))
                replayed += len(batch)
            rest, _ = run(again)
            assert [c.key for c in rest] == [c.key for c in whole[replayed:]]

    def test_an_exhausted_space_ends_the_search(self, name):
        sizes = (2, 3, 2)
        domain = GenomeDomain.grid(sizes)
        cost = np.array([1.0, 2.0, 4.0])

        def tiny(batch):
            return np.array([[-float(c.genes @ cost), float(c.genes.sum())] for c in batch])

        asked, _ = run(self.make(name, domain, evaluations=100), tiny)
        assert len(asked) == len({c.key for c in asked}) <= 12
        if name != "greedy":  # which follows one path
            everything = itertools.product(*map(range, sizes))
            assert {c.key for c in asked} == {",".join(map(str, genes)) for genes in everything}

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_failed_candidates_do_not_stop_it(self, name, domain, bad, axis):
        def flaky(batch):
            objectives = evaluate(batch)
            objectives[[candidate.id % 3 == 0 for candidate in batch], axis] = bad
            return objectives

        asked, _ = run(self.make(name, domain), flaky)
        assert len(asked) == expected(name)

    def test_all_failed_or_all_infeasible(self, name, domain):
        asked, _ = run(self.make(name, domain), lambda batch: np.full((len(batch), 2), np.nan))
        assert len(asked) == expected(name)
        asked, _ = run(self.make(name, domain), violations=lambda batch: np.ones((len(batch), 3)))
        assert len(asked) == expected(name)

    def test_a_space_of_one_genome(self, name):
        asked, _ = run(self.make(name, GenomeDomain.grid([1, 1])), lambda batch: np.zeros((len(batch), 2)))
        assert len(asked) == 1

    def test_misuse_is_refused(self, name, domain):
        search = self.make(name, domain)
        with pytest.raises(RunError, match=r"ask before tell|shape"):
            search.tell([[0.0, 0.0]])
        batch = search.ask()
        with pytest.raises(RunError, match="tell before the next ask"):
            search.ask()
        with pytest.raises(RunError, match=rf"shape \({len(batch)}, 2\), but got \(1, 3\)"):
            search.tell([[0.0, 0.0, 0.0]])
        with pytest.raises(RunError, match="violations of"):
            search.tell(evaluate(batch), np.zeros((len(batch) + 1, 2)))
        search.tell(evaluate(batch))
        with pytest.raises(ConfigurationError, match="evaluations must be at least 1, but got 0"):
            self.make(name, domain, evaluations=0)
        with pytest.raises(ConfigurationError, match=r"Seed 0: expected 8 genes, but got an array of shape \(2,\)"):
            self.make(name, domain, seeds=[np.array([0, 1])])


def true_front(sizes):
    archive = ParetoArchive()
    for index, genes in enumerate(itertools.product(*map(range, sizes))):
        key = ",".join(map(str, genes))
        archive.add([Evaluated(index, key, np.array(genes), tuple(error_and_cost(np.array(genes))))])
    return {entry.objectives for entry in archive.front}


def test_nsga2_finds_most_of_the_true_front_of_a_space_that_can_be_enumerated(domain):
    truth = true_front(SIZES)  # of 43,200 genomes
    search = SEARCHERS["nsga2"](domain, n_objectives=2, seed=0, evaluations=1500, population_size=30)
    archive = ParetoArchive()
    asked, told = run(search)
    archive.add(Evaluated(c.id, c.key, c.genes, tuple(values)) for c, values in zip(asked, told, strict=True))
    found = {entry.objectives for entry in archive.front}
    assert len(found & truth) / len(truth) >= 0.8


def test_constraints_steer_the_search(domain):
    def too_costly(batch):
        return np.array([candidate.genes.sum() - 6.0 for candidate in batch])

    search = SEARCHERS["nsga2"](domain, n_objectives=2, seed=0, evaluations=400, population_size=20)
    asked, _ = run(search, violations=too_costly)
    first, last = asked[:40], asked[-40:]
    share = [sum(c.genes.sum() <= 6 for c in part) / 40 for part in (first, last)]
    assert share[1] >= 0.7
    assert share[1] > share[0]


def test_generations_are_a_budget_too(domain):
    search = SEARCHERS["nsga2"](domain, n_objectives=2, seed=0, population_size=10, generations=3)
    asked, _ = run(search)
    assert len(asked) == search.proposed == 30
    assert search.generation == 3


def test_unknown_search_teaches():
    with pytest.raises(UnknownNameError, match="Did you mean 'nsga2'"):
        SEARCHERS["nsga3"]
    with pytest.raises(ConfigurationError, match="already a search named 'nsga2'"):
        SEARCHERS.register("nsga2")(SEARCHERS["nsga2"])
    with pytest.raises(ConfigurationError, match="population_size must be at least 1"):
        SEARCHERS["nsga2"](GenomeDomain.grid([2]), n_objectives=1, seed=0, population_size=0)
