import numpy as np
import pytest

from evoquant.config import load_experiment
from evoquant.evaluate import captured_model
from evoquant.hardware import CostModel, CostTable, Roofline, load_device
from evoquant.resources import folder
from evoquant.run import build_space


@pytest.fixture(scope="module")
def graph():
    return captured_model(load_experiment(folder("experiments") / "quickstart.yaml")).graph


def table_of(graph, device):
    space = build_space(load_experiment(folder("experiments") / "quickstart.yaml"), graph, device)
    costs = CostModel(graph, device, Roofline(device))
    choices = [space.choice_plans(position) for position in range(len(space.groups))]
    return costs, choices, CostTable(costs, choices)


def test_sums_over_groups_are_the_costs_of_the_plan(graph):
    costs, choices, table = table_of(graph, load_device("host_cpu"))
    assert table.is_exact
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(0, len(group), 20) for group in choices], axis=1)
    found = table(indices)
    for row, chosen in enumerate(indices.tolist()):
        plan = {op: config for group, index in zip(choices, chosen, strict=True) for op, config in group[index].items()}
        expected = costs.costs(plan)
        for name, values in found.items():
            assert values[row] == pytest.approx(getattr(expected, name), rel=1e-9), name


def test_conversions_between_neighbours_are_no_sum(graph):
    _, _, table = table_of(graph, load_device("raspberry_pi_4"))
    assert not table.is_exact
