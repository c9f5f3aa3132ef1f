"""Whose batch is evaluated next."""

import math

import numpy as np
import pytest

from evoquant.run.contest import most_promising
from evoquant.search import Evaluated, GenomeDomain, ParetoArchive, ReferencePoint, SurrogateSearch

BITS = np.array([4.0, 5.0, 6.0, 8.0])
GROUPS = 6
SENSITIVITY = np.array([2.0, 0.3, 1.0, 0.1, 3.0, 0.7])


class Known:
    """A contender whose promises are given, each for one state of the front."""

    def __init__(self, *promises, generation=1):
        self.promises, self.generation = list(promises), generation
        self.promise, self.is_up_to_date, self.asked = math.inf, False, 0

    def propose(self, _most):
        self.asked += 1
        self.promise, self.is_up_to_date = self.promises.pop(0), True
        return self.promise is not None


def test_the_greatest_promise_wins_and_the_first_of_equals():
    first, second, third = Known(0.1), Known(0.3), Known(0.3)
    assert most_promising([first, second, third], 10) is second
    assert [contender.asked for contender in (first, second, third)] == [1, 1, 1]


def test_only_what_is_on_top_is_computed_anew():
    strong, weak = Known(0.3, 0.25), Known(0.1)
    assert most_promising([strong, weak], 10) is strong
    strong.promise, strong.is_up_to_date, weak.is_up_to_date = math.inf, False, False  # a batch of it was evaluated
    assert most_promising([strong, weak], 10) is strong
    assert (strong.asked, weak.asked) == (2, 1)


def test_everyone_has_a_first_batch():
    ahead, behind = Known(0.9), Known(math.inf, generation=0)
    assert most_promising([ahead, behind], 10) is behind
    assert ahead.asked == 0


def test_the_end():
    assert most_promising([Known(0.5)], 0) is None
    empty = Known(None)
    assert most_promising([empty], 10) is None
    other = Known(0.2)
    assert most_promising([Known(None), other], 10) is other


class Model:
    """A contender with a surrogate of its own: a network whose error has an offset and whose cost has a factor."""

    def __init__(self, archive, name, *, offset, cost):
        self.archive, self.name, self.generation, self.promise = archive, name, 0, math.inf
        self.shift, self.cost = np.array([offset, 0.0]), cost
        self.batch, self.evaluations, self.proposed_at = [], 0, -1
        self.searcher = SurrogateSearch(
            GenomeDomain.grid([len(BITS)] * GROUPS),
            n_objectives=2,
            seed=0,
            population_size=1,
            seeds=list(np.repeat(np.arange(len(BITS))[:, None], GROUPS, axis=1)),
            known=lambda genomes: np.column_stack([np.full(len(genomes), np.nan), self.objectives(genomes)[:, 1]]),
            reference=archive.reference.moved(-self.shift),
            inner_generations=10,
        )

    def objectives(self, genomes):
        error = (SENSITIVITY * 4.0 ** (4.0 - BITS[genomes])).sum(axis=1)
        return np.column_stack([0.02 * error, self.cost * BITS[genomes].mean(axis=1) / 8.0])

    @property
    def is_up_to_date(self):
        return self.proposed_at == self.archive.evaluations

    def propose(self, most):
        front = np.array([entry.objectives for entry in self.archive.front]).reshape(-1, 2) - self.shift
        self.batch, self.promise = self.searcher.propose(front, most=most)
        self.proposed_at = self.archive.evaluations
        return bool(self.batch)

    def evaluate(self):
        values = self.objectives(np.array([candidate.genes for candidate in self.batch]))
        self.searcher.tell(values)
        rows = (values + self.shift).tolist()
        self.archive.add(
            Evaluated(c.id, f"{self.name}:{c.key}", c.genes, tuple(row))
            for c, row in zip(self.batch, rows, strict=True)
        )
        self.evaluations += len(self.batch)
        self.generation, self.promise = self.generation + 1, math.inf


def contest(budget=60, **models):
    archive = ParetoArchive(ReferencePoint((0.3, 1.1), (0.0, 0.0)))
    contenders = [Model(archive, name, **settings) for name, settings in models.items()]
    while (best := most_promising(contenders, budget - archive.evaluations)) is not None:
        best.evaluate()
    assert archive.evaluations == budget
    return archive, {contender.name: contender.evaluations for contender in contenders}


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_dominated_everywhere_gets_little_more_than_its_seeds(order):
    models = {"good": {"offset": 0.0, "cost": 0.6}, "bad": {"offset": 0.1, "cost": 1.0}}
    archive, evaluations = contest(**dict(list(models.items())[::order]))
    assert evaluations["bad"] <= len(BITS) + 8
    assert all(entry.key.startswith("good") for entry in archive.front)


def test_where_each_is_best_somewhere_both_are_searched():
    archive, evaluations = contest(large={"offset": 0.0, "cost": 1.0}, small={"offset": 0.05, "cost": 0.5})
    assert min(evaluations.values()) >= 15
    assert {entry.key.partition(":")[0] for entry in archive.front} == {"large", "small"}


def test_the_budget_spent_where_it_is_promised_finds_more_than_equal_shares():
    models = {"good": {"offset": 0.0, "cost": 0.6}, "bad": {"offset": 0.1, "cost": 1.0}}
    shared, _ = contest(budget=40, **models)
    alone, _ = contest(budget=20, good=models["good"])
    assert shared.hypervolume > alone.hypervolume
