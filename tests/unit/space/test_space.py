from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import ConfigurationError, PrecisionError
from evoquant.space import N_AXES, Axis, SearchSpace, SpaceSpec, plan_hash, uniform_plan
from evoquant.types import LayerQuantConfig, OpKind, QuantizationGranularity, QuantizationScheme, Role

RICH = {
    "schema_version": 1,
    "default": {
        "weights": ["ternary", "log2:4", "uniform:4", "uniform:8", "float"],
        "activations": ["log2:4", "uniform:4", "uniform:8", "float"],
        "granularity": ["per_tensor", "per_channel", "per_group:16", "per_group:32"],
        "calibration": ["minmax", "percentile:99.9", "mse"],
        "symmetric": [False, True],
    },
}


def build(graph, data=RICH, legal=None):
    return SearchSpace.build(SpaceSpec.model_validate(data), graph, legal=legal)


@pytest.fixture(scope="module")
def space(graph):
    return build(graph)


def genomes(space):
    bounds = space.upper_bounds
    return st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).integers(0, bounds + 1, size=len(bounds))
    )


def gene_of(space, group):
    index = [g.name for g in space.groups].index(group)
    return slice(index * N_AXES, (index + 1) * N_AXES), space.tables[index]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repair_is_idempotent_and_keeps_the_plan(space, data):
    genes = data.draw(genomes(space))
    repaired = space.repair(genes)
    assert np.array_equal(space.repair(repaired), repaired)
    assert space.decode(repaired) == space.decode(genes)
    assert (repaired >= 0).all()
    assert (repaired <= space.upper_bounds).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encode_is_the_inverse_of_decode(space, data):
    genes = data.draw(genomes(space))
    plan = space.decode(genes)
    assert np.array_equal(space.encode(plan), space.repair(genes))
    assert np.array_equal(space.nearest(plan), space.repair(genes))
    assert space.phenotype_hash(genes) == plan_hash(plan) == space.phenotype_hash(space.repair(genes))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_hash_for_one_plan(space, data):
    first, second = data.draw(genomes(space)), data.draw(genomes(space))
    same_plan = space.decode(first) == space.decode(second)
    assert same_plan == (space.phenotype_hash(first) == space.phenotype_hash(second))
    assert same_plan == np.array_equal(space.repair(first), space.repair(second))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_plans_are_legal(graph, space, data):
    for name, config in space.decode(data.draw(genomes(space))).items():
        op = graph.op[name]
        if op.kind is OpKind.MATMUL:
            assert config.weight_bits == config.activation_bits
            assert config.weight_scheme is QuantizationScheme.UNIFORM
            assert config.granularity is not QuantizationGranularity.PER_GROUP
        elif config.group_size is not None:
            assert np.prod(op.weight_shape[1:]) % config.group_size == 0
            assert config.group_size < np.prod(op.weight_shape[1:])
        if config.activation_scheme is QuantizationScheme.LOG2:
            assert op.role is Role.ATTENTION_AV
            assert config.activation_bits <= 4


def test_stem_and_head_have_eight_bits(graph, space):
    for genes in (np.zeros_like(space.upper_bounds), space.upper_bounds):
        plan = space.decode(genes)
        for name in ("stem", "head"):
            assert (plan[name].weight_bits, plan[name].activation_bits) == (8, 8)
    rule = {"match": {"role": "stem"}, "weights": ["uniform:4"]}
    opened = build(graph, {**RICH, "rules": [rule]})
    assert opened.decode(opened.upper_bounds)["stem"].weight_bits == 4


def test_repair_takes_several_genomes_and_values_outside(space):
    many = np.stack([space.upper_bounds, space.upper_bounds + 7, np.full_like(space.upper_bounds, -3)])
    repaired = space.repair(many)
    assert np.array_equal(repaired[0], repaired[1])
    assert np.array_equal(repaired[2], space.repair(np.zeros_like(space.upper_bounds)))


def test_an_illegal_gene_becomes_the_nearest_legal_one(space):
    where, table = gene_of(space, "bridge.in")
    log2 = [str(choice) for choice in table.axes.activations].index("log2:4")
    genes = space.upper_bounds.copy()
    genes[where.start + Axis.ACTIVATION] = log2
    config = space.decode(genes)["bridge.in"]
    assert (config.activation_scheme, config.activation_bits) == (QuantizationScheme.UNIFORM, 4)


def test_ops_of_a_group_share_a_gene(space):
    rng = np.random.default_rng(5)
    plan = space.decode(rng.integers(0, space.upper_bounds + 1))
    assert plan["blocks.0.attn.q"] == plan["blocks.0.attn.k"] == plan["blocks.0.attn.v"]


def test_effect_free_genes_do_not_count(graph):
    data = {
        "schema_version": 1,
        "default": {
            "weights": ["uniform:4", "uniform:8"],
            "activations": ["uniform:8", "float"],
            "granularity": ["per_tensor", "per_channel"],
        },
    }
    space = build(graph, data)
    sizes = dict(zip([group.name for group in space.groups], space.tables, strict=True))
    assert sizes["bridge.in"].phenotypes == 2 * 2 * 2
    assert sizes["blocks.0.attn.qk"].phenotypes == 2 + 1  # the float one has no granularity; weights have no say
    # Stem and head have one choice; 2 local convolutions, the bridge and 2 blocks of 4 linear groups 8; 4 matmuls 3.
    assert space.size_log10 == pytest.approx(math.log10(8**11 * 3**4))


def test_size_counts_distinct_plans(graph):
    data = {
        "schema_version": 1,
        "default": {"weights": ["uniform:8"], "activations": ["uniform:8"]},
        "rules": [
            {
                "match": {"name": ["bridge.in", "blocks.0.attn.av"]},
                "weights": ["ternary", "uniform:4", "float"],
                "activations": ["log2:4", "uniform:4", "float"],
                "granularity": ["per_tensor", "per_group:48", "per_channel", "per_group:32"],
                "symmetric": [True, False],
            }
        ],
    }
    space = build(graph, data)
    rng = np.random.default_rng(0)
    seen = {space.phenotype_hash(rng.integers(0, space.upper_bounds + 1)) for _ in range(6000)}
    assert len(seen) == round(10**space.size_log10)


def test_a_target_rewrites_and_refuses(graph):
    def legal(op, config):
        if config.weight_bits == 32 or config.activation_bits == 32:
            return "no floating point unit"
        return LayerQuantConfig(weight_bits=8, activation_bits=8) if op.role is Role.DEPTHWISE else config

    space = build(graph, legal=legal)
    _, depthwise = gene_of(space, "local.depthwise")
    assert depthwise.phenotypes == 1
    plan = space.decode(space.upper_bounds)
    assert plan["local.depthwise"] == LayerQuantConfig(weight_bits=8, activation_bits=8)
    assert not any(config.weight_bits == 32 for config in plan.values())
    assert space.choices("bridge.in").barred["weights"]["float"] == "no floating point unit"


def test_all_refused_is_an_error_that_lists_the_groups(graph):
    with pytest.raises(ConfigurationError, match=r"'bridge.in'.*none of its 480 choices.*not today") as caught:
        build(graph, legal=lambda *_: "not today")
    assert len(caught.value.problems) == len(graph.groups)


def test_rules_must_leave_a_group_something_in_common(graph):
    rule = {"match": {"name": "*.attn.q"}, "weights": ["uniform:5"]}
    with pytest.raises(ConfigurationError, match=r"'blocks.0.attn.qkv'.*no common weights"):
        build(graph, {**RICH, "rules": [rule]})


def test_the_last_rule_wins_field_by_field(graph):
    rules = [
        {"match": {"block_kind": "transformer"}, "weights": ["uniform:6"], "activations": ["uniform:6"]},
        {"match": {"role": "mlp_*", "name": "blocks.1.*"}, "weights": ["uniform:5"]},
    ]
    plan = build(graph, {**RICH, "rules": rules}).decode(np.zeros(17 * N_AXES, dtype=int))
    assert plan["blocks.1.mlp.fc1"].label == "W5A6"
    assert plan["blocks.0.mlp.fc1"].label == "W6A6"


def test_choices_explain(space):
    choices = space.choices("local.depthwise")
    assert choices.available["weights"] == ("ternary", "log2:4", "uniform:4", "uniform:8", "float")
    assert list(choices.barred["activations"]) == ["log2:4"]
    assert "the output of a softmax" in choices.barred["activations"]["log2:4"]
    assert "16 does not divide 9" in choices.barred["granularity"]["per_group:16"]
    assert "has no effect here" in space.choices("blocks.0.attn.qk").barred["weights"].values()
    with pytest.raises(ConfigurationError, match="'nope' is not in this space"):
        space.choices("nope")


def test_encode_names_what_it_cannot_express(graph, space):
    plan = {name: replace(of, calibration_method="mse") for name, of in uniform_plan(graph, 8, 8).items()}
    with pytest.raises(PrecisionError, match=r"'bridge.in': this space has no W7A8"):
        space.encode({**plan, "bridge.in": LayerQuantConfig(weight_bits=7)})
    with pytest.raises(PrecisionError, match=r"'blocks.0.attn.q': it obeys one gene with"):
        space.encode({**plan, "blocks.0.attn.q": LayerQuantConfig(weight_bits=4)})
    with pytest.raises(PrecisionError, match="misses stem and has unknown extra"):
        space.encode({**{k: v for k, v in plan.items() if k != "stem"}, "extra": LayerQuantConfig()})


def test_genomes_of_another_shape_are_refused(space):
    with pytest.raises(PrecisionError, match="has 85 integers"):
        space.decode([1, 2, 3])
    with pytest.raises(PrecisionError, match="float64"):
        space.decode(np.zeros(85))


def test_blocks_hold_every_group_once(space):
    assert sorted(index for block in space.blocks for index in block) == list(range(len(space.groups)))
    assert len(space.blocks) == 6


def test_the_hash_is_the_same_in_another_process():
    plan = {"b": LayerQuantConfig(weight_bits=4), "a": LayerQuantConfig()}
    program = (
        "from evoquant.space import plan_hash; from evoquant.types import LayerQuantConfig; import json, sys; "
        "data = json.loads(sys.argv[1]); print(plan_hash({k: LayerQuantConfig.from_dict(v) for k, v in data.items()}))"
    )
    text = json.dumps({name: config.to_dict() for name, config in plan.items()})
    command = [sys.executable, "-c", program, text]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert answer == plan_hash(plan) == plan_hash(dict(reversed(plan.items())))
    assert plan_hash(plan) != plan_hash({**plan, "a": LayerQuantConfig(weight_bits=7)})
