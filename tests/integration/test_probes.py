from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

from evoquant.calibrate.fisher import GradientPass, operand_key
from evoquant.evaluate import ProbeTable, analyze_sensitivity, metric_correlation, prepare
from evoquant.evaluate.fisher_table import DIRECTIONS, IMAGES_AT_ONCE, fisher_choices
from evoquant.evaluate.probes import probe_choices
from evoquant.hardware import CostModel, Roofline, load_device
from evoquant.run import build_space
from evoquant.run.searchers import SearcherFactory
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
        assert 0.1 * entry.kl < entry.fisher < 10.0 * entry.kl
    assert abs(metric_correlation(entries)) == pytest.approx(1.0)


def narrow(bench, weights, activations=("uniform:8",)):
    """One layer with some widths of weights and activations, all others at 8 bits."""
    graph = bench.captured.graph
    space = {
        "schema_version": 1,
        "description": "One layer with a choice.",
        "default": {
            "weights": ["uniform:8"],
            "activations": ["uniform:8"],
            "granularity": ["per_channel"],
            "calibration": ["mse"],
            "symmetric": [False],
        },
        "rules": [
            {
                "match": {"name": [graph.groups[2].ops[0]]},
                "weights": list(weights),
                "activations": list(activations),
            }
        ],
    }
    return build_space(bench.experiment.model_copy(update={"space": space}), graph, None)


def test_probes_have_the_measured_divergences(bench):
    space = narrow(bench, ["uniform:4", "uniform:8"], ["uniform:4", "uniform:8"])
    table = probe_choices(bench.evaluator, space, images=16)
    assert probe_choices(bench.evaluator, space, images=16, workers=3) == table
    assert table.images == 16
    assert table.probes == 4
    assert table.passes < 16 + table.full_passes
    float_plan = uniform_plan(space.graph, 32, 32)
    images = bench.evaluator.images("selection")
    reference = images.reference[:16].double().log_softmax(1)
    for row, choice in enumerate(space.choice_plans(2)):
        total = 0.0
        for side in ({"activation_bits": 32}, {"weight_bits": 32}):
            plan = {**float_plan, **{name: replace(config, **side) for name, config in choice.items()}}
            logits = bench.evaluator.logits(plan, split="selection")[:16].double()
            total += float((reference.exp() * (reference - logits.log_softmax(1))).sum(1).mean())
        assert table.errors[2][row] == pytest.approx(total, rel=1e-9)
    assert ProbeTable.from_dict(table.to_dict()) == table


def test_the_fisher_form_is_the_square_of_what_a_choice_moves(bench):
    """Written again with one gradient for each image and direction, of the function itself."""
    space = narrow(bench, ["uniform:4", "uniform:8"])
    table = fisher_choices(bench.evaluator, space, images=6)
    assert fisher_choices(bench.evaluator, space, images=6, workers=3) == table
    assert ProbeTable.from_dict(table.to_dict()) == table
    name, operands = space.groups[2].ops[0], bench.evaluator.operands
    choices = space.choice_plans(2)
    images = torch.cat(list(bench.evaluator.images("selection").batches))[:6]
    model = bench.captured
    op, weight, bias = model.graph.op[name], model.weight(name), model.bias(name)
    totals = [0.0 for _ in choices]
    for index, batch in enumerate(torch.split(images, IMAGES_AT_ONCE)):
        generator = torch.Generator().manual_seed(index)
        watched = GradientPass(bench.captured, batch)
        for _ in range(DIRECTIONS):
            watched.back(generator)
            gradient = watched.operands[operand_key(op, 0)][0].grad
            for image in range(len(batch)):
                # The gradient of the weight for one image: what the image's own output gradient leaves on it.
                own = torch.zeros_like(watched.outputs[name])
                own[image] = watched.outputs[name].grad[image]
                value = watched.operands[operand_key(op, 0)][0].detach()
                with torch.enable_grad():
                    leaf = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
                    out = torch.nn.functional.conv2d(
                        value, *leaf, op.geometry.stride, op.geometry.padding, op.geometry.dilation, op.geometry.groups
                    )
                    of_weight, of_bias = torch.autograd.grad(out, leaf, own)
                for row, plan in enumerate(choices):
                    change = operands.weight(op, plan[name]) - weight
                    shift = operands.bias(op, plan[name]) - bias
                    by_weight = float((of_weight * change).sum() + (of_bias * shift).sum())
                    error = operands.quantizer(op, 0, plan[name])(value) - value
                    by_activation = float((gradient[image] * error[image]).sum())
                    totals[row] += by_weight**2 + by_activation**2
    expected = [total / (2 * DIRECTIONS * len(images)) for total in totals]
    assert table.errors[2] == pytest.approx(expected, rel=2e-3)
    assert all(values == (0.0,) for index, values in enumerate(table.errors) if index != 2)


def test_both_metrics_rank_choices_alike(bench, space):
    fisher = fisher_choices(bench.evaluator, space, images=16)
    probed = probe_choices(bench.evaluator, space, images=16)
    assert fisher.passes < probed.passes / 10
    assert fisher.probes == probed.probes
    found = [np.concatenate([np.array(values) for values in table.errors]) for table in (fisher, probed)]
    assert spearmanr(*found).statistic > 0.95


def test_a_group_without_a_choice_costs_no_probe(bench):
    table = probe_choices(bench.evaluator, narrow(bench, ["uniform:4", "uniform:8"]), images=16)
    assert table.probes == 3  # two of the weights, one of the activations
    for index, values in enumerate(table.errors):
        assert (len(values) == 2 and min(values) > 0.0) if index == 2 else values == (0.0,)


def test_the_table_ranks_plans_as_evaluations_do(bench, space):
    table = fisher_choices(bench.evaluator, space, images=16)
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


def test_a_small_budget_has_seeds_of_the_structure_and_of_programs(bench, space):
    table = fisher_choices(bench.evaluator, space, images=16)
    device = load_device("raspberry_pi_4")
    costs = CostModel(space.graph, device, Roofline(device))

    def seeds(evaluations, probes):
        search = bench.experiment.search.model_copy(update={"evaluations": evaluations})
        experiment = bench.experiment.model_copy(update={"search": search})
        return SearcherFactory(experiment, space, costs, bench.classes, probes).seeds()

    everything, without = seeds(1000, table), seeds(24, None)
    structured, programmed = seeds(24, table)
    assert len(structured) + len(programmed) == 12
    assert abs(len(structured) - len(programmed)) <= 1
    assert np.array_equal(structured, everything[0][: len(structured)])
    assert {genes.tobytes() for genes in programmed} <= {genes.tobytes() for genes in everything[1]}
    assert np.array_equal(without[0], everything[0])
    assert without[1] == []


def test_cost_tables_say_what_a_choice_adds(bench, space):
    device = load_device("raspberry_pi_4")
    costs = CostModel(space.graph, device, Roofline(device))
    factory = SearcherFactory(bench.experiment, space, costs, bench.classes)
    base = space.decode(space.nearest(uniform_plan(space.graph, 8, 8)))
    start = costs.costs(base)
    position = len(space.groups) // 2
    for row, choice in enumerate(space.choice_plans(position)):
        found = costs.costs({**base, **choice})
        for name, table in factory.cost_tables.items():
            added = getattr(found, name) - getattr(start, name)
            assert table[position][row] == pytest.approx(added, rel=1e-6, abs=1e-9 * getattr(start, name))
