"""A run whose candidates race: the same front however it is run, and nobody on it who has not seen every image."""

import asyncio
import shutil
import sqlite3

import pytest

from evoquant.config import Experiment
from evoquant.evaluate import prepare
from evoquant.run import events, run_experiment
from evoquant.run.journal import Journal
from evoquant.space import plan_hash

IMAGES, EVALUATIONS = 96, 30

VOLATILE = ("seconds", "hypervolume_seconds", "provenance")
"""What two runs with the same front differ in."""


def run(experiment, folder, **options):
    return asyncio.run(run_experiment(experiment, run_dir=folder, **options))


def essence(front):
    return {name: value for name, value in front.to_dict().items() if name not in VOLATILE}


def changed(experiment, section, **changes):
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=changes)})


@pytest.fixture(scope="module")
def experiment(module_experiment):
    selection = module_experiment.data.selection.model_copy(update={"count": IMAGES})
    return changed(
        changed(module_experiment, "data", selection=selection),
        "search",
        racing=True,
        evaluations=EVALUATIONS,
        algorithm="nsga2",
    )


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """One run to its end: its front, and its folder."""
    folder = tmp_path_factory.mktemp("raced")
    return run(experiment, folder), folder


def records_of(folder):
    with Journal(folder / "journal.sqlite") as journal:
        return [record for record in journal if record.split == "selection"]


def test_some_stop_early_and_none_of_them_is_on_the_front(whole):
    front, folder = whole
    stopped = {record.phenotype: record for record in records_of(folder) if record.status == "stopped"}
    assert front.stopped == len(stopped) > 0
    assert {record.result["images"] for record in stopped.values()} == {64}
    assert not stopped.keys() & {plan_hash(point.plan) for point in (*front.front, *front.baselines)}
    assert front.evaluations == EVALUATIONS
    assert len(front.evaluated) == EVALUATIONS - len(stopped)
    baselines = len({plan_hash(point.plan) for point in front.baselines})
    assert front.images_evaluated == (baselines + EVALUATIONS) * IMAGES - len(stopped) * (IMAGES - 64)


def test_members_of_the_front_have_the_numbers_of_an_evaluation_without_a_race(experiment, whole):
    front, _ = whole
    evaluator = prepare(experiment).evaluator
    for point in front.front:
        alone = evaluator.evaluate(point.plan, split="selection")
        assert (alone.images, alone.kl, alone.kl_stderr, alone.drop_pp) == (
            IMAGES,
            *(point.objectives[name] for name in ("kl", "kl_stderr", "accuracy_drop_pp")),
        )


def test_images_in_parts_have_the_scores_of_the_whole(experiment, whole):
    front, _ = whole
    evaluator, plan = prepare(experiment).evaluator, front.front[0].plan
    parts = [evaluator.scores(plan, split="selection", images=slice(*bounds)) for bounds in ((0, 64), (64, None))]
    assert b"".join(part.tobytes() for part in parts) == evaluator.scores(plan, split="selection").tobytes()


def test_one_evaluation_at_a_time_finds_the_same_front(experiment, whole, tmp_path):
    assert essence(run(changed(experiment, "evaluation", parallel_evaluations=1), tmp_path)) == essence(whole[0])


@pytest.mark.slow
def test_worker_processes_find_the_same_front(experiment, whole, tmp_path):
    assert essence(run(changed(experiment, "evaluation", executor="process"), tmp_path)) == essence(whole[0])


def test_a_cancelled_run_goes_on_to_the_same_front(experiment, whole, tmp_path):
    async def cancelled():
        task = None

        def listener(event):
            if isinstance(event, events.GenerationFinished) and event.generation == 3:
                task.cancel()

        task = asyncio.ensure_future(run_experiment(experiment, run_dir=tmp_path, listener=listener))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert essence(run(experiment, tmp_path)) == essence(whole[0])


@pytest.mark.parametrize("kept", [17, 26])
def test_a_journal_that_ends_anywhere_is_gone_on_from(experiment, whole, tmp_path, kept):
    """What a run leaves that was killed after so many evaluations."""
    front, folder = whole
    shutil.copytree(folder, tmp_path / "killed")
    with sqlite3.connect(tmp_path / "killed" / "journal.sqlite") as connection:
        connection.execute(
            "DELETE FROM evaluations WHERE rowid NOT IN (SELECT rowid FROM evaluations ORDER BY rowid LIMIT ?)", (kept,)
        )
    connection.close()
    assert essence(run(experiment, tmp_path / "killed")) == essence(front)


def test_images_in_the_order_of_a_file_are_no_sample(experiment):
    data = experiment.model_dump()
    data["data"]["selection"]["seed"] = None
    with pytest.raises(ValueError, match=r"data\.selection a seed"):
        Experiment.model_validate(data)
