import asyncio

import pytest

from evoquant.config import ModelSpec
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.hardware import load_device
from evoquant.run import build_space, run_experiment
from evoquant.run.warm_start import earlier_plans, transferred
from evoquant.space import preset_plan, uniform_plan
from evoquant.types import Role


@pytest.fixture(scope="module")
def earlier(module_experiment):
    """The front of a finished run."""
    return asyncio.run(run_experiment(module_experiment)), module_experiment.output.dir / module_experiment.name


def warm(experiment, folder, **changes):
    search = experiment.search.model_copy(update={"warm_start": folder, **changes})
    return experiment.model_copy(update={"name": "warm", "search": search})


def test_a_run_starts_from_the_front_of_an_earlier_one(earlier, small_experiment):
    front, folder = earlier
    experiment = warm(small_experiment, folder, evaluations=60, seed=9)
    found = asyncio.run(run_experiment(experiment))
    taken = earlier_plans(folder, captured_model(experiment).graph, experiment.search.population_size)
    assert 0 < len(taken) <= experiment.search.population_size
    assert all(plan in [point.plan for point in front.front] for plan in taken)
    # Nothing that was taken over is better than all that was found.
    objectives = [tuple(point.objectives[name] for name in found.objectives) for point in found.front]
    for plan in taken:
        point = next(point for point in front.front if point.plan == plan)
        values = tuple(point.objectives[name] for name in front.objectives)
        assert any(all(a <= b for a, b in zip(own, values, strict=True)) for own in objectives)
    again = asyncio.run(run_experiment(experiment))
    assert [point.plan for point in again.front] == [point.plan for point in found.front]


def test_another_model_takes_precisions_by_role_and_depth(earlier, module_experiment):
    _, folder = earlier
    older = captured_model(module_experiment).graph
    other = module_experiment.model_copy(update={"model": ModelSpec(name="mobilevitv2_050", num_classes=10)})
    graph = captured_model(other).graph
    plan = dict(uniform_plan(older, 6, 6))
    depthwise = [op.name for op in older.ops if op.role is Role.DEPTHWISE]
    for place, name in enumerate(depthwise):
        plan[name] = uniform_plan(older, 4 + place % 2, 8)[name]
    found = transferred(plan, older, graph)
    assert set(found) == set(graph.op)
    for op in graph.ops:
        bits = (found[op.name].weight_bits, found[op.name].activation_bits)
        assert bits in ({(4, 8), (5, 8)} if op.role is Role.DEPTHWISE else {(6, 6), (8, 8)})
    same = transferred(plan, older, older)
    assert {name: config.weight_bits for name, config in same.items()} == {
        name: config.weight_bits for name, config in plan.items()
    }
    plans = earlier_plans(folder, graph, 3)
    assert len(plans) == 3
    space = build_space(other, graph, load_device("raspberry_pi_4"))
    for carried in plans:
        decoded = space.decode(space.nearest(carried))
        assert set(decoded) == set(graph.op)


def test_a_folder_without_a_front_is_refused_at_once(small_experiment, tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        asyncio.run(run_experiment(warm(small_experiment, tmp_path / "nowhere")))
    assert not (small_experiment.output.dir / "warm").exists()


def test_presets_survive_the_way_to_the_same_model(module_experiment):
    graph = captured_model(module_experiment).graph
    plan = preset_plan("w4a8", graph, {})
    assert transferred(plan, graph, graph) == plan
