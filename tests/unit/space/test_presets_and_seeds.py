from __future__ import annotations

import pytest

from evoquant.config import validate
from evoquant.errors import ConfigurationError, UnknownNameError
from evoquant.resources import folder
from evoquant.space import (
    PRESET_NAMES,
    SearchSpace,
    SpaceSpec,
    efficientquant_plan,
    preset_plan,
    presets,
    sensitivity_seeds,
    structured_seeds,
    uniform_plan,
)
from evoquant.types import OpKind, QuantizationScheme, Role


@pytest.fixture(scope="module")
def space(graph):
    return SearchSpace.build(validate(SpaceSpec, folder("search_spaces") / "mobile_hybrid.yaml"), graph)


def test_presets_have_their_bits(graph):
    for name, (weight_bits, activation_bits) in {
        "w8a8": (8, 8),
        "w6a6": (6, 6),
        "w4a8": (4, 8),
        "w4a4": (4, 4),
    }.items():
        plan = preset_plan(name, graph)
        assert list(plan) == [op.name for op in graph.ops]
        for op in graph.ops:
            config = plan[op.name]
            if op.role in (Role.STEM, Role.HEAD):
                assert (config.weight_bits, config.activation_bits) == (8, 8)
            elif op.kind is OpKind.MATMUL:
                assert (config.weight_bits, config.activation_bits) == (activation_bits, activation_bits)
            else:
                assert (config.weight_bits, config.activation_bits) == (weight_bits, activation_bits)
                assert (config.weight_scheme is QuantizationScheme.NORMAL) == (weight_bits == 4)


def test_float_preset_quantizes_nothing(graph):
    assert all(config.is_float for config in preset_plan("fp32", graph).values())


def test_edges_follow_when_told(graph):
    assert uniform_plan(graph, 4, 4, edge_bits=4)["stem"].label == "W4A4"
    assert uniform_plan(graph, 16, 16)["stem"].label == "W16A16"


def test_unknown_preset_teaches(graph):
    with pytest.raises(UnknownNameError, match="Did you mean 'w4a8'"):
        preset_plan("w4a9", graph)
    assert tuple(presets(graph)) == PRESET_NAMES


def test_the_published_rule_goes_by_type_unless_told(graph):
    plan = efficientquant_plan(graph)
    assert plan["bridge.in"].label == "W8A8"
    assert plan["head"].weight_scheme is QuantizationScheme.LOG2
    assert plan["blocks.0.attn.av"].activation_scheme is QuantizationScheme.LOG2
    assert plan["blocks.0.attn.qk"].label == "W8A8"
    told = efficientquant_plan(graph, {**dict.fromkeys(graph.op, "cnn"), "bridge.in": "transformer"})
    assert told["head"].label == "W8A8"
    assert told["bridge.in"].weight_scheme is QuantizationScheme.LOG2


def test_seeds_are_distinct_and_as_near_as_the_space_allows(space):
    seeds = structured_seeds(space)
    names = [name for name, _ in seeds]
    assert names[:4] == ["w8a8", "w6a6", "w4a8", "w4a4"]
    assert len({space.phenotype_hash(genes) for _, genes in seeds}) == len(seeds)
    plans = {name: space.decode(genes) for name, genes in seeds}
    assert {config.label for config in plans["w8a8"].values()} == {"W8A8"}
    assert plans["w4a4"]["bridge.in"].label == "W4A4-normal"
    assert plans["w4a4"]["local.depthwise"].label == "W6A6"  # the space has nothing lower there
    assert plans["hybrid_log2_attention"]["blocks.1.attn.av"].activation_scheme is QuantizationScheme.LOG2
    assert plans["hybrid_log2"]["blocks.1.mlp.fc2"].weight_scheme is QuantizationScheme.LOG2
    assert plans["hybrid_log2"]["bridge.in"].weight_scheme is QuantizationScheme.UNIFORM
    assert plans["local_8_global_4"]["bridge.in"].weight_bits == 8
    assert plans["local_8_global_4"]["blocks.0.mlp.fc1"].weight_bits == 4
    assert plans["local_4_global_8"]["bridge.in"].weight_bits == 4


def test_the_least_sensitive_groups_are_lowered_first(space):
    order = [group.name for group in space.groups]
    scores = {name: float(index) for index, name in enumerate(reversed(order))}
    seeds = dict(sensitivity_seeds(space, scores, levels=3))
    lowered = []
    for level in (1, 2, 3):
        plan = space.decode(seeds[f"sensitivity_w4a8_{level}_of_3"])
        lowered.append({name for name, config in plan.items() if config.weight_bits < 8})
    assert lowered[0] < lowered[1] < lowered[2]
    assert "blocks.1.mlp.fc2" in lowered[0]
    assert "bridge.in" not in lowered[2]


def test_a_missing_sensitivity_is_named(space):
    with pytest.raises(ConfigurationError, match="stem"):
        structured_seeds(space, sensitivity={})
