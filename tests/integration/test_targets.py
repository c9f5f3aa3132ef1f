"""One run for several devices: one front each, evaluations shared."""

import asyncio
import json

import pytest

from evoquant.cli import main
from evoquant.config import experiment_to_yaml, load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.hardware import legalise, load_device
from evoquant.run import events, read_front, read_fronts, run_experiment
from evoquant.run.journal import Journal
from evoquant.run.plans import read_plan
from evoquant.space import plan_hash

VOLATILE = ("seconds", "hypervolume_seconds", "provenance")
"""What two runs with the same front differ in."""

DEVICES = ("host_avx2", "xeon_vnni", "nvidia_t4")
EVALUATIONS = 18


def for_devices(experiment, *devices, **search):
    spec = experiment.target.model_copy(update={"device": devices})
    changes = {"target": spec, "search": experiment.search.model_copy(update=search)}
    return experiment.model_copy(update=changes)


def run(experiment, folder, **options):
    return asyncio.run(run_experiment(experiment, run_dir=folder, **options))


def essences(front):
    return [
        {name: value for name, value in entry.to_dict().items() if name not in VOLATILE}
        for entry in (front, *front.other_targets)
    ]


@pytest.fixture(scope="module")
def experiment(module_experiment):
    search = {"algorithm": "surrogate", "sensitivity": True, "sensitivity_images": 4}
    return for_devices(module_experiment, *DEVICES, seed_budgets=1, **search)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """One run to its end: its fronts, its folder, and what it told."""
    folder, heard = tmp_path_factory.mktemp("whole"), []
    return run(experiment, folder, listener=heard.append), folder, heard


def test_every_device_has_a_front_of_its_own(whole):
    front, folder, heard = whole
    fronts = (front, *front.other_targets)
    assert tuple(entry.device for entry in fronts) == DEVICES
    assert {entry.status for entry in fronts} == {"done"}
    assert read_front(folder).to_dict() == front.to_dict()
    for entry in fronts:
        own = folder / "targets" / entry.device
        assert read_front(own).to_dict() == entry.to_dict()
        assert load_experiment(own / "config.yaml").target.device == (entry.device,)
        assert entry.provenance["latency_kind"] == "predicted"
        assert entry.knee in {point.id for point in entry.front}
        assert 0 < entry.hypervolume < 1
    assert len(read_fronts(folder)) == 4
    told = {event.device for event in heard if isinstance(event, events.GenerationFinished)}
    assert told == set(DEVICES)


def test_the_devices_share_the_evaluations(whole):
    front, folder, _ = whole
    fronts = (front, *front.other_targets)
    plans = {plan_hash(point.plan) for entry in fronts for point in entry.baselines}
    with Journal(folder / "journal.sqlite") as journal:
        judged = {record.phenotype for record in journal if record.split == "selection"}
    assert len(judged) <= EVALUATIONS + len(plans)
    assert sum(entry.evaluations for entry in fronts) > EVALUATIONS, "what one evaluates the others take"
    divergences = {}
    for entry in fronts:
        for point in (*entry.front, *entry.baselines):
            key = tuple(sorted(point.plan.items()))
            assert divergences.setdefault(key, point.objectives["kl"]) == point.objectives["kl"]


def test_fewer_bits_are_faster_only_where_the_hardware_is(whole):
    front, _, _ = whole
    gains = {}
    for entry in (front, *front.other_targets):
        narrow, wide = (entry.point(name).objectives for name in ("w4a8", "w8a8"))
        gains[entry.device] = wide["latency_ms"] / narrow["latency_ms"]
    assert gains["host_avx2"] > 1.05
    assert gains["xeon_vnni"] == pytest.approx(1.0, abs=0.02)
    assert gains["nvidia_t4"] == pytest.approx(1.0, abs=0.02)


def test_every_point_is_what_its_device_executes(whole, experiment):
    front, folder, _ = whole
    graph = captured_model(experiment).graph
    for entry in (front, *front.other_targets):
        device = load_device(entry.device)
        for point in (*entry.front, *entry.baselines):
            legal = {op.name: legalise(op, point.plan[op.name], device).config for op in graph.ops}
            assert legal == dict(point.plan)
    assert read_plan(f"{folder / 'targets' / 'nvidia_t4'}#knee", graph, {}) == front.other_targets[1].point("knee").plan


def test_a_cancelled_run_goes_on_to_the_same_fronts_one_evaluation_at_a_time(experiment, whole, tmp_path):
    front, _, _ = whole
    serial = experiment.model_copy(
        update={"evaluation": experiment.evaluation.model_copy(update={"parallel_evaluations": 1})}
    )

    async def cancelled():
        task, generations = None, 0

        def listener(event):
            nonlocal generations
            generations += isinstance(event, events.GenerationFinished)
            if generations == 2:
                task.cancel()

        task = asyncio.ensure_future(run_experiment(serial, run_dir=tmp_path, listener=listener))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    partial = read_fronts(tmp_path)
    assert {entry.status for entry in partial.values()} == {"interrupted"}
    assert essences(run(serial, tmp_path)) == essences(front)


def test_the_command_lists_the_targets(module_experiment, tmp_path, capsys):
    short = for_devices(module_experiment, "raspberry_pi_4", "jetson_agx_orin", population_size=2, evaluations=4)
    short = short.model_copy(
        update={
            "target": short.target.model_copy(update={"latency": "measured"}),
            "evaluation": short.evaluation.model_copy(update={"test_points": 0}),
        }
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment_to_yaml(short))
    with pytest.raises(SystemExit) as ended:
        main(["search", str(file), "--run-dir", str(tmp_path / "run"), "--json"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [target["device"] for target in document["targets"]] == ["raspberry_pi_4", "jetson_agx_orin"]
    assert document["front"] == document["targets"][0]["front"]
    for target in document["targets"]:
        assert target["latency_kind"] == "predicted"
        assert "not this machine" in target["latency"]
        assert {"knee", "hypervolume", "verdict", "baselines"} <= target.keys()
        assert (tmp_path / "run" / "targets" / target["device"] / "report.html").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'href="targets/jetson_agx_orin/report.html"' in page
    assert "Latencies are predicted: the roofline of Raspberry Pi 4" in page
    assert "latency: raspberry_pi_4: the roofline of" in " ".join(printed.err.split())


def test_one_device_under_two_names_is_refused(module_experiment, tmp_path):
    with pytest.raises(ConfigurationError, match="'arm_dot' and 'raspberry_pi_5' are the same device"):
        run(for_devices(module_experiment, "arm_dot", "raspberry_pi_5"), tmp_path)
    assert not list(tmp_path.iterdir())
