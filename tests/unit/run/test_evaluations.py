"""Evaluations in a race, on an executor that knows the scores of every plan."""

import asyncio
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from evoquant.errors import ModelError
from evoquant.evaluate import IMAGE_SCORE, accuracy_of
from evoquant.run.evaluations import Evaluations
from evoquant.run.journal import Journal
from evoquant.space import plan_hash
from evoquant.types import LayerQuantConfig

IMAGES, LOOKS = 40, (10, 20)
PLANS = [{"conv": LayerQuantConfig(weight_bits=bits)} for bits in (2, 4, 6, 8)]
HARD, FAIR, GOOD, BROKEN = PLANS
KL = {plan_hash(HARD): 0.9, plan_hash(FAIR): 0.5, plan_hash(GOOD): 0.1, plan_hash(BROKEN): 0.5}


def scores_of(plan):
    rng = np.random.default_rng(int(plan_hash(plan)[:8], 16))
    scores = np.zeros(IMAGES, dtype=IMAGE_SCORE)
    scores["kl"] = KL[plan_hash(plan)] + 0.01 * rng.random(IMAGES)
    scores["is_right"] = rng.random(IMAGES) < 0.5
    return scores


class KnownScores:
    """An executor that finishes plans in an order of its own, and breaks one after 20 images."""

    def __init__(self, size=2):
        self.size, self.calls = size, []

    async def evaluate(self, plan, *, split, images):  # noqa: ARG002
        self.calls.append((plan, images))
        await asyncio.sleep(0.001 * (len(self.calls) % 3))
        if plan == BROKEN and images.indices(IMAGES)[1] > 20:
            raise ModelError("not finite")
        return scores_of(plan)[images]

    def stop(self):
        pass

    def close(self):
        pass


class AtLook:
    """A race that stops what is worse than a limit at each look."""

    def __init__(self, limits):
        self.looks, self._limits = LOOKS, dict(zip(LOOKS, limits, strict=True))

    def estimates(self, _plan, scores):
        return {"kl": float(scores["kl"].mean())} if scores["kl"].mean() > self._limits[len(scores)] else None


RACE = AtLook((0.8, 0.4))


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


def evaluated(journal, plans, race=RACE, size=2):
    executor = KnownScores(size)
    records = asyncio.run(Evaluations(executor, journal).of(plans, split="selection", race=race))
    return records, executor.calls


def essence(records):
    """What must be equal, as it is after a way through JSON."""
    return [replace(record, seconds=0.0, result=json.loads(json.dumps(record.result))) for record in records]


def test_each_stops_at_its_look_and_no_image_is_evaluated_twice(journal):
    records, calls = evaluated(journal, [HARD, FAIR, GOOD])
    assert [(record.status, record.result["images"]) for record in records] == [
        ("stopped", 10),
        ("stopped", 20),
        ("done", IMAGES),
    ]
    seen = {plan_hash(plan): [images for other, images in calls if other == plan] for plan in (HARD, FAIR, GOOD)}
    assert seen[plan_hash(HARD)] == [slice(0, 10)]
    assert seen[plan_hash(FAIR)] == [slice(0, 10), slice(10, 20)]
    assert seen[plan_hash(GOOD)] == [slice(0, 10), slice(10, 20), slice(20, None)]
    assert essence(records) == essence(journal.get(record.phenotype, split="selection") for record in records)


def test_what_gets_all_images_has_the_numbers_of_an_evaluation_without_a_race(journal, tmp_path):
    (raced,), _ = evaluated(journal, [GOOD])
    with Journal(tmp_path / "other.sqlite") as other:
        (plain,), calls = evaluated(other, [GOOD], race=None)
    assert calls == [(GOOD, slice(0, None))]
    assert essence([raced]) == essence([plain])
    assert raced.result == accuracy_of(scores_of(GOOD)).to_dict()


def test_without_a_race_a_stopped_plan_goes_on_where_it_stopped(journal):
    evaluated(journal, [HARD])
    (record,), calls = evaluated(journal, [HARD], race=None)
    assert calls == [(HARD, slice(10, None))]
    assert record.result == accuracy_of(scores_of(HARD)).to_dict()
    assert journal.get(plan_hash(HARD), split="selection").status == "done"


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("first", [None, AtLook((0.3, 0.3)), AtLook((2.0, 2.0))])
def test_a_race_has_the_same_answers_whatever_the_journal_knows(journal, tmp_path, first, size):
    with Journal(tmp_path / "other.sqlite") as other:
        expected, _ = evaluated(other, PLANS)
    for known in itertools.chain.from_iterable(itertools.combinations(PLANS, count) for count in (1, 4)):
        evaluated(journal, known, race=first)
        assert essence(evaluated(journal, PLANS, size=size)[0])[:3] == essence(expected)[:3]


def test_a_failure_behind_a_look_does_not_change_what_was_decided_there(journal):
    (stopped,), _ = evaluated(journal, [BROKEN])
    assert (stopped.status, stopped.result["images"]) == ("stopped", 20)
    (failed,), _ = evaluated(journal, [BROKEN], race=None)
    assert (failed.status, failed.reason, failed.result) == ("failed", "ModelError: not finite", None)
    (again,), calls = evaluated(journal, [BROKEN])
    assert (essence([again]), calls) == (essence([stopped]), [])
    (last,), calls = evaluated(journal, [BROKEN], race=None)
    assert (last, calls) == (failed, [])
