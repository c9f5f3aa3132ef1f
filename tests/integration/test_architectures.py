"""One run over several architectures: one budget, one front, points that know whose they are."""

import asyncio
import csv
import json

import numpy as np
import pytest

from evoquant.cli import main
from evoquant.config import ArchitectureSpec, ModelChanges, experiment_to_yaml, load_experiment
from evoquant.deploy.exports import export_run
from evoquant.errors import ConfigurationError
from evoquant.evaluate import prepare
from evoquant.models import create
from evoquant.run import events, read_front, run_experiment
from evoquant.run.journal import Journal
from evoquant.run.plans import architecture_of, read_plan

VOLATILE = ("seconds", "hypervolume_seconds", "provenance")
"""What two runs with the same front differ in."""

EVALUATIONS = 30
PRESETS = ("fp32", "w8a8", "w6a6", "w4a8", "w4a4", "efficientquant")


def run(experiment, folder, **options):
    return asyncio.run(run_experiment(experiment, run_dir=folder, **options))


def essence(front):
    return {name: value for name, value in front.to_dict().items() if name not in VOLATILE}


@pytest.fixture(scope="module")
def experiment(module_experiment):
    """The embedded default at its own 32 pixels, and at 24, for which it was not trained."""
    search = {"algorithm": "surrogate", "sensitivity": True, "sensitivity_images": 4}
    return module_experiment.model_copy(
        update={
            "name": "family",
            "architectures": (
                ArchitectureSpec(name="at_24", model=ModelChanges(image_size=24)),
                ArchitectureSpec(name="at_32"),
            ),
            "search": module_experiment.search.model_copy(
                update={**search, "evaluations": EVALUATIONS, "seed_budgets": 1}
            ),
            "evaluation": module_experiment.evaluation.model_copy(update={"test_points": None}),
        }
    )


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """One run to its end: its front, its folder, and what it told."""
    folder, heard = tmp_path_factory.mktemp("whole"), []
    return run(experiment, folder, listener=heard.append), folder, heard


@pytest.fixture(scope="module")
def benches(experiment):
    return {name: prepare(alone) for name, alone in experiment.by_architecture().items()}


def test_both_architectures_are_on_one_front(whole):
    front, folder, heard = whole
    assert front.status == "done"
    assert front.evaluations == EVALUATIONS
    assert {point.architecture for point in front.front} == {"at_24", "at_32"}
    values = np.array([[point.objectives[name] for name in front.objectives] for point in front.front])
    for row in values:
        assert not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    assert all(point.name.startswith(point.architecture) for point in (*front.front, *front.baselines))
    told = [event.architecture for event in heard if isinstance(event, events.GenerationFinished)]
    assert set(told) == {"at_24", "at_32"}
    assert read_front(folder).to_dict() == front.to_dict()
    with (folder / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["architecture"] for row in rows if row["kind"] == "front"] == [
        point.architecture for point in front.front
    ]


def test_errors_are_those_of_the_own_model_and_its_distance_from_the_best(whole, benches):
    front, _, _ = whole
    described = {each.name: each for each in front.architectures}
    assert described["at_32"].selection.offset == 0.0, "it was trained at 32 pixels"
    assert described["at_24"].selection.offset > 0.1
    assert sum(each.evaluations for each in front.architectures) == EVALUATIONS
    assert [each.image_size for each in front.architectures] == [24, 32]
    for split in ("selection", "test"):
        right, loss = {}, {}
        for name, bench in benches.items():
            images = bench.evaluator.images(split)
            right[name] = (images.reference.argmax(1) == images.labels).double()
            log_p = images.reference.double().log_softmax(1)
            loss[name] = -log_p[range(len(log_p)), images.labels].mean().item()
        for name, bench in benches.items():
            own = getattr(described[name], split)
            assert own.top1 == pytest.approx(100 * right[name].mean().item())
            assert own.cross_entropy == pytest.approx(loss[name])
            assert own.offset == pytest.approx(loss[name] - loss["at_32"])
            point = next(point for point in front.front if point.architecture == name and point.test is not None)
            accuracy = bench.evaluator.evaluate(point.plan, split=split)
            drop = 100 * right["at_32"].mean().item() - accuracy.top1
            if split == "selection":
                assert point.objectives["quantization_kl"] == accuracy.kl
                assert point.objectives["kl"] == accuracy.kl + own.offset
                assert point.objectives["top1"] == accuracy.top1
                assert point.objectives["accuracy_drop_pp"] == pytest.approx(drop)
            else:
                assert point.test.top1 == accuracy.top1
                assert point.test.kl == accuracy.kl + own.offset
                assert point.test.drop_pp == pytest.approx(drop)


def test_baselines_of_the_best_architecture_keep_their_names(whole):
    front, _, _ = whole
    assert {point.id for point in front.baselines} == {*PRESETS, *(f"at_24.{name}" for name in PRESETS)}
    assert front.point("fp32").objectives["kl"] == 0.0
    assert front.point("at_24.fp32").objectives["quantization_kl"] == 0.0
    assert front.point("at_24.fp32").objectives["latency_ms"] < front.point("fp32").objectives["latency_ms"]
    assert {comparison.name for comparison in front.comparisons} == {"presets", "at_24 alone", "at_32 alone"}
    for comparison in front.comparisons:
        assert 0 < comparison.hypervolume <= front.hypervolume


def test_plans_of_one_structure_do_not_collide_in_the_journal(whole):
    _, folder, _ = whole
    with Journal(folder / "journal.sqlite") as journal:
        found = [tuple(record.phenotype.split(":")) for record in journal if record.split == "selection"]
    assert {name for name, _ in found} == {"at_24", "at_32"}
    by_plan = {}
    for name, plan in found:
        by_plan.setdefault(plan, set()).add(name)
    assert {"at_24", "at_32"} in by_plan.values(), "seeds that both have"


def test_a_cancelled_run_goes_on_to_the_same_front_one_evaluation_at_a_time(experiment, whole, tmp_path):
    front, _, _ = whole
    serial = experiment.model_copy(
        update={"evaluation": experiment.evaluation.model_copy(update={"parallel_evaluations": 1})}
    )

    async def cancelled():
        task, generations = None, 0

        def listener(event):
            nonlocal generations
            generations += isinstance(event, events.GenerationFinished)
            if generations == 3:
                task.cancel()

        task = asyncio.ensure_future(run_experiment(serial, run_dir=tmp_path, listener=listener))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    partial = read_front(tmp_path)
    assert partial.status == "interrupted"
    assert 0 < partial.evaluations < EVALUATIONS
    assert essence(run(serial, tmp_path)) == essence(front)


def test_a_point_is_loaded_with_its_own_architecture(whole, experiment, benches, tmp_path, capsys):
    front, folder, _ = whole
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment_to_yaml(experiment))
    assert load_experiment(file) == experiment
    for name in ("at_24", "at_32"):
        point = next(point for point in front.front if point.architecture == name and point.test is not None)
        for source in (f"{folder}#{point.id}", str(folder / "plans" / f"{point.id}.yaml")):
            assert architecture_of(source) == name
            assert read_plan(source, benches[name].captured.graph, {}) == point.plan
        main_ends(["evaluate", str(file), "--plan", f"{folder}#{point.id}", "--json"])
        judged = json.loads(capsys.readouterr().out)
        assert judged["top1"] == point.test.top1
        for figure in ("latency_ms", "energy_mj", "model_size_bytes"):
            assert judged[figure] == point.objectives[figure]
        (exported,) = export_run(folder, [point.id])["exports"]
        assert exported["stored_bytes"] == pytest.approx(point.objectives["model_size_bytes"], rel=0.05)


def main_ends(arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code


def test_what_does_not_say_which_architecture_is_refused(whole, experiment, module_experiment, tmp_path, capsys):
    front, folder, _ = whole
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment_to_yaml(experiment))
    main_ends(["evaluate", str(file), "--plan", "w8a8"], code=2)
    assert "several architectures: at_24, at_32. Choose one with --architecture" in flat(capsys)
    main_ends(["sensitivity", str(file), "--architecture", "at_42"], code=2)
    assert "Unknown architecture 'at_42'" in flat(capsys)
    alone = tmp_path / "alone.yaml"
    alone.write_text(experiment_to_yaml(module_experiment))
    main_ends(["evaluate", str(alone), "--plan", f"{folder}#{front.front[0].id}"], code=2)
    assert "but the experiment 'small' has no architectures" in flat(capsys)


def flat(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_model_as_an_object_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigurationError, match="Architectures are made by name"):
        run(experiment, tmp_path, model=create("mobilevit_micro"))


def test_the_command_draws_and_lists_the_architectures(whole, capsys):
    _, folder, _ = whole
    main_ends(["report", str(folder), "--json"])
    capsys.readouterr()
    names = {path.stem for path in (folder / "plots").glob("*.png")}
    assert {"front_bits_at_24", "front_bits_at_32", "objective_pairs", "accuracy"} <= names
    page = (folder / "report.html").read_text()
    assert "<h2>Architectures</h2>" in page
    assert "at_24" in page
