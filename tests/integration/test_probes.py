from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evoquant.evaluate import ProbeTable, analyze_sensitivity, prepare, probe_choices
from evoquant.hardware import load_device
from evoquant.run import build_space
from evoquant.space import uniform_plan


@pytest.fixture(scope="module")
def bench(module_experiment):
    return prepare(module_experiment)


@pytest.fixture(scope="module")
def space(bench):
    return build_space(bench.experiment, bench.captured.graph, load_device("raspberry_pi_4"))


def test_a_pass_finished_from_a_cut_equals_the_whole_pass(bench):
    graph, model = bench.captured.graph, bench.evaluator.copy_of_model()
    images = bench.evaluator.images("selection").batches[0]
    float_plan, coarse = uniform_plan(graph, 32, 32), uniform_plan(graph, 4, 4)
    model.apply(float_plan)
    sweep = model.sweep(images)
    groups = sorted(graph.groups, key=lambda group: model.cut(group.ops))
    for group in groups[::4] + groups[-1:]:
        sweep.advance(model.cut(group.ops))
        plan = {**float_plan, **{name: coarse[name] for name in group.ops}}
        model.apply(plan)
        from_cut = sweep.finish()
        assert torch.equal(from_cut, model(images))
        assert not torch.equal(from_cut, bench.captured(images))
        model.apply(float_plan)
    assert torch.equal(sweep.finish(), bench.captured(images))


def test_sensitivities_equal_evaluations_from_the_input(bench):
    graph = bench.captured.graph
    names = [graph.groups[1].name, graph.groups[-1].name]
    entries = analyze_sensitivity(bench.evaluator, graph, groups=names)
    assert {entry.group for entry in entries} == set(names)
    for entry in entries:
        probe = uniform_plan(graph, 4, 4, edge_bits=0)
        plan = {**uniform_plan(graph, 32, 32), **{name: probe[name] for name in entry.ops}}
        assert entry.kl == bench.evaluator.evaluate(plan, split="selection").kl


def test_the_table_has_the_measured_divergences_where_it_probed(bench, space):
    table = probe_choices(bench.evaluator, space, images=16, formats=2)
    assert probe_choices(bench.evaluator, space, images=16, formats=2, workers=3) == table
    assert table.images == 16
    assert [len(values) for values in table.errors] == [
        len(space.choice_plans(index)) for index in range(len(space.groups))
    ]
    assert table.passes < 0.75 * table.full_passes
    # The first choice has the first part of both sides, and these are always probed: two evaluations add up to it.
    position = 1
    choice = space.choice_plans(position)[0]
    float_plan = uniform_plan(space.graph, 32, 32)
    images = bench.evaluator.images("selection")
    total = 0.0
    for side in ({"activation_bits": 32}, {"weight_bits": 32}):
        plan = {**float_plan, **{name: replace(config, **side) for name, config in choice.items()}}
        logits = bench.evaluator.logits(plan, split="selection")[:16].double()
        reference = images.reference[:16].double().log_softmax(1)
        total += float((reference.exp() * (reference - logits.log_softmax(1))).sum(1).mean())
    assert table.errors[position][0] == pytest.approx(total, rel=1e-9)
    assert ProbeTable.from_dict(table.to_dict()) == table


def test_a_group_without_a_choice_costs_no_probe(bench):
    graph = bench.captured.graph
    narrow = {
        "schema_version": 1,
        "description": "One layer with two widths of weights.",
        "default": {
            "weights": ["uniform:8"],
            "activations": ["uniform:8"],
            "granularity": ["per_channel"],
            "calibration": ["mse"],
            "symmetric": [False],
        },
        "rules": [{"match": {"name": [graph.groups[2].ops[0]]}, "weights": ["uniform:4", "uniform:8"]}],
    }
    space = build_space(bench.experiment.model_copy(update={"space": narrow}), graph, None)
    table = probe_choices(bench.evaluator, space, images=16)
    assert table.probes == 3  # two of the weights, one of the activations
    for index, values in enumerate(table.errors):
        assert (len(values) == 2 and min(values) > 0.0) if index == 2 else values == (0.0,)


def test_the_table_ranks_plans_as_evaluations_do(bench, space):
    table = probe_choices(bench.evaluator, space, images=16)
    rng = np.random.default_rng(0)
    predicted, evaluated = [], []
    for share in np.linspace(0.05, 0.95, 10):
        plan, error = {}, 0.0
        for index, values in enumerate(table.errors):
            row = min(int(rng.beta(4 * share, 4 * (1 - share)) * len(values)), len(values) - 1)
            plan |= space.choice_plans(index)[row]
            error += values[row]
        predicted.append(error)
        evaluated.append(bench.evaluator.evaluate(plan, split="selection").kl)
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, evaluated)]
    assert np.corrcoef(ranks)[0, 1] > 0.7


def test_probes_from_the_cut_compute_less_than_from_the_input(bench, record_property):
    graph = bench.captured.graph
    analyze_sensitivity(bench.evaluator, graph)  # quantized weights and reference answers are made once and kept
    with FlopCounterMode(display=False) as cut:
        analyze_sensitivity(bench.evaluator, graph)
    with FlopCounterMode(display=False) as full:
        for _ in graph.groups:
            bench.evaluator.evaluate(uniform_plan(graph, 32, 32), split="selection")
    ratio = cut.get_total_flops() / full.get_total_flops()
    record_property("operations_from_the_cut", ratio)
    assert 0.2 < ratio < 0.8
