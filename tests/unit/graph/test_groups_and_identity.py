import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.graph import GroupPolicy, efficientquant_classes, graph_hash, group_ops
from evoquant.graph.names import joined
from evoquant.types import ModelGraph


def test_projections_of_one_tensor_share_a_gene(tiny_vit):
    graph = tiny_vit[1].graph
    group = graph.op["layers.1.mixer.k"].group
    assert group == "layers.1.mixer.{q,k,v}"
    assert graph.group[group].ops == ("layers.1.mixer.q", "layers.1.mixer.k", "layers.1.mixer.v")
    assert graph.op["layers.1.up"].group == "layers.1.up"


@pytest.mark.parametrize("policy", list(GroupPolicy))
@pytest.mark.parametrize("name", ["convnet", "tiny_vit", "hybrid"])
def test_each_operation_is_in_exactly_one_group(name, policy, request):
    graph = group_ops(request.getfixturevalue(name)[1].graph, policy)
    members = [op for group in graph.groups for op in group.ops]
    assert sorted(members) == sorted(op.name for op in graph.ops)
    assert all(op.name in graph.group[op.group].ops for op in graph.ops)


def test_operands_of_a_sum_share_a_gene_on_request(convnet):
    graph = group_ops(convnet[1].graph, "residual")
    assert graph.op["entry.0"].group == graph.op["body.0.second.0"].group == graph.op["body.1.project.0"].group
    assert graph.op["body.0.first.0"].group == "body.0.first.0"


@given(st.lists(st.from_regex(r"[a-c](\.[a-c]){0,3}", fullmatch=True), min_size=2, max_size=4, unique=True))
def test_joined_names_differ_from_their_parts(names):
    assert joined(names) not in names


def test_graph_survives_json(hybrid):
    graph = hybrid[1].graph
    read = ModelGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert read == graph
    assert graph_hash(read) == graph_hash(graph)


def test_hash_depends_on_structure_only(hybrid, convnet):
    graph = hybrid[1].graph
    assert graph_hash(graph) == graph_hash(hybrid[1].clone().graph)
    assert graph_hash(graph) != graph_hash(convnet[1].graph)
    assert graph_hash(graph) != graph_hash(group_ops(graph, "residual"))


def test_the_published_rule_goes_by_type_and_name(hybrid):
    model, captured = hybrid
    classes = efficientquant_classes(model, captured.graph)
    assert classes["body.1.widen"] == "cnn"
    assert classes["body.1.far.up"] == "transformer"
    assert classes["body.1.far.mixer.qk"] == "transformer"  # inside a module of type Attention
    assert classes["classifier"] == "transformer"
    assert set(classes) == {op.name for op in captured.graph.ops}
