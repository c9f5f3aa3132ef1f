"""Workers outside the run's process: the same front as threads find, whatever happens to a worker."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from evoquant.config import experiment_to_yaml
from evoquant.errors import ConfigurationError, RunError
from evoquant.evaluate import prepare
from evoquant.run import events, read_front, run_experiment
from evoquant.run.executors import WorkerExecutor
from evoquant.run.workers import ProcessWorker
from evoquant.space import uniform_plan

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: evoquant[ray]")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="No /proc to find workers in")
KINDS = ["process", pytest.param("ray", marks=needs_ray)]

VOLATILE = ("seconds", "hypervolume_seconds", "provenance")
"""What two runs with the same front differ in."""


def on(experiment, executor, **options):
    changes = {"executor": executor, **options}
    return experiment.model_copy(update={"evaluation": experiment.evaluation.model_copy(update=changes)})


def run(experiment, folder, **options):
    return asyncio.run(run_experiment(experiment, run_dir=folder, **options))


def essence(front):
    return {name: value for name, value in front.to_dict().items() if name not in VOLATILE}


@pytest.fixture(scope="module")
def front_of_threads(module_experiment, tmp_path_factory):
    return essence(run(module_experiment, tmp_path_factory.mktemp("threads")))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster that this process is connected to before any run."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: evoquant[ray]")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield ray
    ray.shutdown()


def workers(run):
    """The workers that descend from a process: their ids, with the state of each as ``/proc`` has it."""
    parents, found = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(process.name)] = int(parent)
            command = (process / "cmdline").read_text()
            if command.startswith("ray::PreparedExperiment") or "multiprocessing.spawn" in command:
                found[int(process.name)] = state

    def descends(pid):
        return pid == run or (pid in parents and descends(parents[pid]))

    return {pid: state for pid, state in found.items() if descends(pid)}


def wait_until_gone(pids):
    deadline = time.monotonic() + 60
    for pid in pids:
        with suppress(OSError):  # it is gone
            while Path(f"/proc/{pid}/cmdline").read_text():  # empty as soon as it has ended
                assert time.monotonic() < deadline, f"worker {pid} outlives its run"
                time.sleep(0.1)


class Killer:
    """A listener that kills a computing worker after each of the given numbers of evaluations.

    It kills those that were there first: a plan whose new worker dies too, while it starts, is given up.
    """

    def __init__(self, *moments):
        self.moments, self.evaluations, self.first, self.killed = list(moments), 0, set(), []

    def __call__(self, event):
        self.evaluations += isinstance(event, events.CandidateEvaluated)
        if self.moments and self.evaluations >= self.moments[0]:
            # The event loop waits for us, so whoever computes has been given a plan and cannot get the next one.
            found = workers(os.getpid())
            self.first = self.first or set(found)
            busy = [pid for pid, state in found.items() if state == "R" and pid in self.first]
            if busy:
                os.kill(busy[0], signal.SIGKILL)
                self.killed.append(busy[0])
                del self.moments[0]


@needs_proc
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_killed_in_mid_evaluation_loses_nothing(kind, module_experiment, front_of_threads, tmp_path, request):
    if kind == "ray":
        request.getfixturevalue("cluster")
    killer = Killer(2, 8)
    front = run(on(module_experiment, kind), tmp_path, listener=killer)
    assert len(killer.killed) == 2
    assert front.failures == 0
    assert essence(front) == front_of_threads
    wait_until_gone(workers(os.getpid()))


@needs_proc
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_takes_its_workers_along_and_goes_on(kind, module_experiment, front_of_threads, tmp_path):
    file, folder = tmp_path / "experiment.yaml", tmp_path / "run"
    file.write_text(experiment_to_yaml(on(module_experiment, kind)))
    command = [sys.executable, "-m", "evoquant", "search", str(file), "--run-dir", str(folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as first:
        assert any(line.startswith("search: ") for line in first.stderr)
        of_first = workers(first.pid)
        first.kill()
    assert len(of_first) == 2
    wait_until_gone(of_first)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["front"] == front_of_threads["front"]
    assert essence(read_front(folder)) == front_of_threads
    assert "Traceback" not in done.stderr


@needs_ray
def test_a_cluster_of_the_caller_is_left_alone_and_must_have_room(module_experiment, cluster, tmp_path):
    crowded = on(module_experiment, "ray", parallel_evaluations=3)
    with pytest.raises(ConfigurationError, match=r"need 3 CPUs, but the Ray cluster has 2\. Use at most 2\."):
        run(crowded, tmp_path)
    assert cluster.is_initialized()


def test_without_ray_the_message_says_how_to_get_it(module_experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'evoquant\[ray\]'"):
        run(on(module_experiment, "ray"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bench(module_experiment):
    return prepare(module_experiment)


def judge(executor, plans):
    async def judgements():
        return await asyncio.gather(*(executor.evaluate(plan, split="selection") for plan in plans))

    return asyncio.run(judgements())


def test_a_plan_that_kills_two_workers_ends_the_run(bench, monkeypatch):
    worker = ProcessWorker(bench.experiment, bench.identity)
    start, started = worker._start, []

    def start_dying():
        start()
        started.append(worker._process.pid)
        worker.kill()

    monkeypatch.setattr(worker, "_start", start_dying)
    executor = WorkerExecutor([worker])
    try:
        with pytest.raises(RunError, match=r"2 workers died .* ended with code -9"):
            judge(executor, [uniform_plan(bench.captured.graph, 8, 8)])
    finally:
        executor.close()
    assert len(set(started)) == 2


def test_a_worker_that_prepares_something_else_may_not_answer(bench):
    executor = WorkerExecutor([ProcessWorker(bench.experiment, {**bench.identity, "program": "another"})])
    try:
        with pytest.raises(RunError, match="prepared something else than the run: program differ"):
            judge(executor, [uniform_plan(bench.captured.graph, 8, 8)])
    finally:
        executor.close()


@needs_proc
def test_stopping_does_not_wait_for_what_runs(bench):
    executor = WorkerExecutor([ProcessWorker(bench.experiment, bench.identity) for _ in range(2)])
    plans = [uniform_plan(bench.captured.graph, bits, 8) for bits in (4, 5, 6, 8)]

    async def stopped():
        waiting = [asyncio.ensure_future(executor.evaluate(plan, split="selection")) for plan in plans]
        await asyncio.sleep(0.5)
        executor.stop()
        return await asyncio.gather(*waiting, return_exceptions=True)

    started = time.perf_counter()
    answers = asyncio.run(stopped())
    executor.close()
    assert [str(answer) for answer in answers] == ["The evaluation was stopped."] * 4
    assert time.perf_counter() - started < 5
    assert not workers(os.getpid())
