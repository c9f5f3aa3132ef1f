import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.hardware import TensorTable, memory
from evoquant.hardware.code_tensors import code_edges
from evoquant.types import LayerQuantConfig, Role
from evoquant.types.precision import FLOAT


def uniform(graph, **fields):
    return {op.name: LayerQuantConfig(**fields) for op in graph.ops}


def test_the_parts_of_a_small_model(builder):
    b = builder((1, 8, 4, 4))
    b.conv("conv", "image", 10, 3)
    graph = b.build(extra_parameters=10)
    cost = memory(graph, uniform(graph, weight_bits=4))
    assert cost.weight_bytes == 10 * (8 * 9 * 4 // 8)
    assert cost.scale_bytes == 10 * 4 + 4 + 1
    assert cost.float_bytes == 40
    assert cost.model_size_bytes == 360 + 45 + 40
    assert cost.compression_ratio == pytest.approx(4 * (720 + 10) / 445)
    assert cost.peak_activation_bytes == 8 * 16 * 1 + 10 * 16 * 4


def test_float_is_four_bytes_a_parameter(hybrid):
    cost = memory(hybrid, dict.fromkeys(uniform(hybrid), FLOAT))
    assert cost.model_size_bytes == 4 * hybrid.parameters
    assert cost.compression_ratio == 1.0
    assert cost.scale_bytes == 0


def peak(graph, activation_bits=32):
    return int(TensorTable(graph).peak_bytes(np.full(len(graph.ops), activation_bits)))


def test_views_share_memory(builder):
    b = builder((4, 8))
    x = b.node("permute", b.linear("fc", "image", 8), (8, 4), is_view=True)
    b.linear("fc2", x, 2)
    assert peak(b.build()) == 4 * (32 + 32)


def test_elementwise_overwrites_what_nobody_reads_later(builder):
    b = builder((4, 8))
    x = b.node("layer_norm", "image")
    b.node("mul", x)
    assert peak(b.build()) == 4 * (32 + 32)
    c = builder((4, 8))
    x = c.node("layer_norm", "image")
    y = c.node("mul", x)
    c.node("add", (y, x))
    assert peak(c.build()) == 4 * (32 + 32)
    d = builder((4, 8))
    x = d.node("layer_norm", "image")
    y = d.node("layer_norm", d.node("mul", x))
    d.node("add", (y, x))
    assert peak(d.build()) == 4 * (32 + 32 + 32)


def test_the_image_is_not_overwritten(builder):
    b = builder((4, 8))
    b.node("relu", "image")
    assert peak(b.build()) == 4 * (32 + 32)


def test_an_activation_function_is_part_of_the_kernel_before_it(builder):
    b = builder((1, 100))
    x = b.node("gelu", b.linear("fc1", "image", 1000))
    b.linear("fc2", x, 1)
    graph = b.build()
    table = TensorTable(graph)
    assert [tensor.node.kind for tensor in table.tensors] == ["input", "gelu", "linear"]
    assert table.tensors[1].producer == 0
    assert peak(graph, 8) == 100 + 1000
    assert peak(graph, 32) == 4 * 1100


def test_a_residual_keeps_floating_point(builder):
    b = builder((10, 10))
    x = b.linear("fc1", "image", 10)
    y = b.linear("fc2", x, 10)
    b.node("add", (y, x))
    graph = b.build()
    widths = TensorTable(graph).element_bytes(np.array([8, 8]))
    assert widths.tolist() == [1, 4, 4, 4]


def test_readers_of_different_width_share_the_widest(builder):
    b = builder((10, 10))
    x = b.linear("fc0", "image", 10)
    b.linear("fc1", x, 10)
    b.linear("fc2", x, 10)
    table = TensorTable(b.build())
    assert table.element_bytes(np.array([8, 4, 8]))[1] == 1
    assert table.element_bytes(np.array([8, 8, 16]))[1] == 2
    assert table.element_bytes(np.array([8, 8, 32]))[1] == 4


@pytest.fixture(scope="module")
def slow_peak(hybrid):
    """The same peak by walking through the nodes and freeing each tensor after its last reader."""

    def walk(bits):
        table = TensorTable(hybrid)
        sizes = dict(zip((t.node.name for t in table.tensors), table.element_bytes(bits) * table.elements, strict=True))
        most = 0
        for moment in range(len(hybrid.nodes)):
            most = max(most, sum(sizes[t.node.name] for t in table.tensors if t.born <= moment <= t.dies))
        return most

    return walk


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_many_plans_at_once_agree_with_a_walk(hybrid, slow_peak, data):
    plan = st.lists(st.sampled_from([4, 8, 16, 32]), min_size=len(hybrid.ops), max_size=len(hybrid.ops))
    plans = np.array(data.draw(st.lists(plan, min_size=1, max_size=3)))
    assert TensorTable(hybrid).peak_bytes(plans).tolist() == [slow_peak(bits) for bits in plans]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_more_bits_never_take_less(hybrid, data):
    op = data.draw(st.sampled_from(hybrid.ops))
    plan = uniform(hybrid)
    bits = sorted(data.draw(st.lists(st.sampled_from([4, 5, 6, 7, 8, 16]), min_size=2, max_size=2)))
    costs = [memory(hybrid, {**plan, op.name: LayerQuantConfig(weight_bits=b, activation_bits=b)}) for b in bits]
    assert costs[0].model_size_bytes <= costs[1].model_size_bytes
    assert costs[0].peak_activation_bytes <= costs[1].peak_activation_bytes


def test_factors_in_front_of_a_depthwise_convolution_are_part_of_the_kernel_before(builder):
    def graph(*, is_read_twice):
        b = builder((1, 3, 8, 8))
        x = b.node("mul", b.node("silu", b.conv("wide", "image", 8, 3, role=Role.STEM)))
        y = b.conv("dw", x, 8, 3, groups=8, role=Role.DEPTHWISE)
        if is_read_twice:
            b.node("add", (y, x))
        return b.build()

    alone, twice = TensorTable(graph(is_read_twice=False)), TensorTable(graph(is_read_twice=True))
    wide, dw = alone.graph.ops
    assert alone.gains == {dw.inputs[0]: wide.node}
    assert alone.results == {wide.node: dw.inputs[0], dw.node: dw.node}
    assert [tensor.node.kind for tensor in alone.tensors] == ["input", "mul", "conv2d"]
    assert code_edges(alone.graph) == {wide.node: dw}
    assert (twice.gains, code_edges(twice.graph)) == ({}, {})
