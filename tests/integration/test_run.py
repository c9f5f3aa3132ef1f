import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from evoquant.config import experiment_to_yaml
from evoquant.errors import ModelError, RunError, UnknownNameError
from evoquant.evaluate import AccuracyEvaluator, prepare
from evoquant.run import events, read_front, run_experiment
from evoquant.run.journal import Journal
from evoquant.run.plans import read_plan
from evoquant.space import plan_hash

VOLATILE = ("seconds", "hypervolume_seconds", "provenance")
"""What two runs with the same front differ in."""


def run(experiment, folder, **options):
    return asyncio.run(run_experiment(experiment, run_dir=folder, **options))


def essence(front):
    """What must be equal between two runs: everything but the time they took and the command that started them."""
    data = front.to_dict()
    return {name: value for name, value in data.items() if name not in VOLATILE}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One whole run, with the events it told."""
    folder = tmp_path_factory.mktemp("whole")
    heard = []

    def make(experiment):
        if not heard:
            make.front = run(experiment, folder, listener=heard.append)
        return make.front, heard, folder

    return make


def test_a_run_finds_a_front_that_is_not_dominated(small_experiment, uninterrupted):
    front, heard, folder = uninterrupted(small_experiment)
    assert front.status == "done"
    assert front.evaluations == 18
    values = [[point.objectives[name] for name in front.objectives] for point in front.front]
    for one in values:
        assert not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in values)
    assert front.point("knee") in front.front
    assert {point.id for point in front.baselines} == {"fp32", "w8a8", "w6a6", "w4a8", "w4a4", "efficientquant"}
    assert [type(event) for event in heard][-1] is events.RunFinished
    assert sum(isinstance(event, events.CandidateEvaluated) for event in heard) == 18
    for name in ("pareto.json", "pareto.yaml", "pareto.csv", "config.yaml", "manifest.json", "journal.sqlite"):
        assert (folder / name).is_file()


def test_the_floating_point_baseline_loses_nothing(small_experiment, uninterrupted):
    front, _, _ = uninterrupted(small_experiment)
    float_point = front.point("fp32")
    assert float_point.objectives["kl"] == 0.0
    assert float_point.test.drop_pp == 0.0
    assert float_point.objectives["model_size_bytes"] > 3.5 * front.point("w8a8").objectives["model_size_bytes"]


def test_a_front_is_read_back_and_evaluates_to_the_same_numbers(small_experiment, uninterrupted):
    front, _, folder = uninterrupted(small_experiment)
    assert read_front(folder).to_dict() == front.to_dict()
    bench = prepare(small_experiment)
    for source in (f"{folder}#knee", str(folder / "plans" / f"{front.knee}.yaml")):
        plan = read_plan(source, bench.captured.graph, bench.classes)
        assert plan == front.point("knee").plan
        assert bench.evaluator.evaluate(plan, split="selection").kl == front.point("knee").objectives["kl"]


def test_one_evaluation_at_a_time_finds_the_same_front(small_experiment, uninterrupted, tmp_path):
    front, _, _ = uninterrupted(small_experiment)
    serial = small_experiment.model_copy(
        update={"evaluation": small_experiment.evaluation.model_copy(update={"parallel_evaluations": 1})}
    )
    assert essence(run(serial, tmp_path / "serial")) == essence(front)


@pytest.mark.slow
def test_worker_processes_find_the_same_front(small_experiment, uninterrupted, tmp_path):
    front, _, _ = uninterrupted(small_experiment)
    processes = small_experiment.model_copy(
        update={"evaluation": small_experiment.evaluation.model_copy(update={"executor": "process"})}
    )
    assert essence(run(processes, tmp_path / "processes")) == essence(front)


def test_a_cancelled_run_leaves_a_valid_front_and_goes_on(small_experiment, uninterrupted, tmp_path):
    front, _, _ = uninterrupted(small_experiment)

    async def cancelled():
        task = None

        def listener(event):
            if isinstance(event, events.GenerationFinished):
                task.cancel()

        task = asyncio.ensure_future(run_experiment(small_experiment, run_dir=tmp_path, listener=listener))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    partial = read_front(tmp_path)
    assert partial.status == "interrupted"
    assert 0 < partial.evaluations < 18
    assert partial.front
    heard = []
    assert essence(run(small_experiment, tmp_path, listener=heard.append)) == essence(front)
    left = [event.eta_seconds for event in heard if isinstance(event, events.GenerationFinished)]
    assert left[0] is None  # it repeats what the journal knows
    assert left[-1] == 0.0


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_finds_the_same_front(small_experiment, uninterrupted, tmp_path):
    front, _, _ = uninterrupted(small_experiment)
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment_to_yaml(small_experiment))
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "evoquant", "search", str(file), "--run-dir", str(folder), "--json"]
    kills = 0
    for moment in range(60):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        # Most of a short run is the start: wait for the journal, then for a moment that differs from kill to kill.
        _wait_for_progress(folder, process, past=kills * 2)
        time.sleep(0.037 * (moment % 7))
        if kills < 10 and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            output, _ = process.communicate(timeout=300)
            break
    assert kills == 10
    assert process.returncode == 0
    assert json.loads(output)["front"] == front.to_dict()["front"]
    assert essence(read_front(folder)) == essence(front)


def _wait_for_progress(folder, process, *, past):
    """Wait until the journal has more than ``past`` evaluations, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "journal.sqlite").exists():
            try:
                with Journal(folder / "journal.sqlite") as journal:
                    if sum(1 for _ in journal) > past:
                        return
            except RunError:
                pass
        time.sleep(0.01)


def test_probes_seed_the_search_and_a_resumed_run_does_not_repeat_them(small_experiment, tmp_path, monkeypatch):
    search = small_experiment.search.model_copy(
        update={
            "algorithm": "surrogate",
            "evaluations": 22,
            "sensitivity": True,
            "sensitivity_images": 8,
            "baselines": ("milp", "random"),
        }
    )
    experiment = small_experiment.model_copy(update={"search": search})
    heard = []
    front = run(experiment, tmp_path / "whole", listener=heard.append)
    (probed,) = [event for event in heard if isinstance(event, events.SensitivityProbed)]
    assert (probed.images, probed.from_journal) == (8, False)
    assert probed.cost_ratio < 0.8
    (promised,) = [event for event in heard if isinstance(event, events.Promised)]
    assert promised.evaluations == 66
    comparisons = {entry.name: entry for entry in front.comparisons}
    assert set(comparisons) == {"presets", "seeds", "milp", "random"}
    assert all(0 < entry.hypervolume < 1 for entry in comparisons.values())
    assert comparisons["seeds"].hypervolume <= front.hypervolume
    plans = {plan_hash(point.plan) for point in front.baselines}
    search_images = front.images_evaluated - 48 * len(plans)
    assert search_images - 48 < comparisons["random"].images <= search_images
    assert comparisons["milp"].images <= search_images

    async def cancelled():
        task = None

        def listener(event):
            if isinstance(event, events.GenerationFinished):
                task.cancel()

        task = asyncio.ensure_future(run_experiment(experiment, run_dir=tmp_path / "again", listener=listener))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    monkeypatch.setattr("evoquant.run.session.SENSITIVITY_TABLES", {})
    assert essence(run(experiment, tmp_path / "again")) == essence(front)


def test_another_experiment_is_refused_in_the_same_folder(small_experiment, uninterrupted):
    _, _, folder = uninterrupted(small_experiment)
    other = small_experiment.model_copy(update={"search": small_experiment.search.model_copy(update={"seed": 4})})
    with pytest.raises(RunError, match=r"experiment: the folder has \w+, this run has \w+"):
        run(other, folder)


def test_a_wrong_space_or_device_is_refused_before_the_model_is_prepared(small_experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("evoquant.run.start.prepare", None)
    unknown = small_experiment.model_copy(update={"space": "mobile_hybird"})
    with pytest.raises(UnknownNameError, match="Did you mean 'mobile_hybrid'"):
        run(unknown, tmp_path)
    elsewhere = small_experiment.target.model_copy(update={"device": ("raspberry_pi_6",)})
    with pytest.raises(UnknownNameError, match="raspberry_pi"):
        run(small_experiment.model_copy(update={"target": elsewhere}), tmp_path)


def test_a_failing_candidate_is_recorded_and_the_run_goes_on(small_experiment, tmp_path, monkeypatch):
    scores = AccuracyEvaluator.scores
    calls = []

    def failing(self, plan, **options):
        calls.append(plan)
        if len(calls) in (9, 14):
            raise ModelError("The model's output is not finite for 1 of 48 images, first for image 0.")
        return scores(self, plan, **options)

    monkeypatch.setattr(AccuracyEvaluator, "scores", failing)
    heard = []
    front = run(small_experiment, tmp_path, listener=heard.append)
    assert front.status == "done"
    assert front.failures == 2
    reasons = [event.reason for event in heard if isinstance(event, events.CandidateEvaluated) and event.reason]
    assert len(reasons) == 2
    assert all("not finite" in reason for reason in reasons)
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert sum(record.status == "failed" for record in journal) == 2


def test_limits_that_nothing_keeps_give_the_nearest_point(small_experiment, tmp_path):
    limits = small_experiment.constraints.model_copy(update={"model_size_mb": 0.01})
    front = run(small_experiment.model_copy(update={"constraints": limits}), tmp_path)
    assert front.status == "infeasible"
    assert len(front.front) == 1
    smallest = min(values["memory_mb"] for values in front.evaluated)
    assert front.front[0].objectives["model_size_mb"] > 0.01
    assert front.front[0].objectives["memory_mb"] <= 1.5 * smallest


def test_limits_are_kept(small_experiment, tmp_path, uninterrupted):
    free, _, _ = uninterrupted(small_experiment)
    limit = sorted(point.objectives["memory_mb"] for point in free.front)[len(free.front) // 2]
    limits = small_experiment.constraints.model_copy(update={"memory_mb": limit})
    front = run(small_experiment.model_copy(update={"constraints": limits}), tmp_path)
    assert front.front
    assert all(point.objectives["memory_mb"] <= limit for point in front.front)
