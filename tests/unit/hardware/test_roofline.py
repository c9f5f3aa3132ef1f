import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import HardwareError
from evoquant.hardware import Kind, Roofline, TensorTable, device_names, load_device
from evoquant.hardware.conversions import conversions
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

DEVICES = {name: load_device(name) for name in device_names()}
INTEGER = sorted(name for name, device in DEVICES.items() if device.refuses_quantized is None and name != "edge_tpu")


def uniform(graph, **fields):
    return {op.name: LayerQuantConfig(**fields) for op in graph.ops}


def one_linear(builder, rows=64, inner=64, columns=64):
    b = builder((rows, inner))
    b.linear("fc", "image", columns)
    return b.build()


def test_a_layer_bound_by_arithmetic(builder):
    graph = one_linear(builder, 1024, 1024, 1024)
    found = Roofline(DEVICES["raspberry_pi_5"]).latency(graph, uniform(graph))
    assert found.per_op["fc"] == pytest.approx(2**30 / (307e9 * 0.3) * 1e3 + 0.012)


def test_a_layer_bound_by_its_weights(builder):
    graph = one_linear(builder, 1, 1024, 1024)
    found = Roofline(DEVICES["raspberry_pi_5"]).latency(graph, uniform(graph, weight_bits=4))
    stored = 2**19 + 1024 * 4
    assert found.per_op["fc"] == pytest.approx(stored / 9e9 * 1e3 + 2048 / 40e9 * 1e3 + 0.012)


def test_the_parts_add_up(hybrid):
    device = DEVICES["raspberry_pi_5"]
    found = Roofline(device).latency(hybrid, uniform(hybrid))
    assert set(found.per_op) == {op.name for op in hybrid.ops}
    assert found.ms == pytest.approx(sum(found.per_op.values()) + found.conversions_ms + found.float_ops_ms + 0.06)
    assert found.kind == "predicted"
    assert found.rests_on == (Kind.PUBLISHED, Kind.DERIVED, Kind.ASSUMED)


def test_threads_share_the_peak(builder):
    graph = one_linear(builder, 512, 512, 512)
    all_cores, one = (Roofline(DEVICES["raspberry_pi_5"], threads=n).latency(graph, uniform(graph)) for n in (None, 1))
    assert (one.per_op["fc"] - 0.012) == pytest.approx(4 * (all_cores.per_op["fc"] - 0.012))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(INTEGER),
    sizes=st.tuples(*[st.integers(1, 300)] * 3),
    grown=st.tuples(*[st.integers(0, 300)] * 3),
    bits=st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), min_size=2, max_size=2),
    activation_bits=st.lists(st.sampled_from([4, 5, 6, 7, 8]), min_size=2, max_size=2),
)
def test_more_work_or_more_bits_never_take_less_time(builder, name, sizes, grown, bits, activation_bits):
    device = DEVICES[name]
    small = one_linear(builder, *sizes)
    large = one_linear(builder, *(a + b for a, b in zip(sizes, grown, strict=True)))
    (w1, w2), (a1, a2) = sorted(bits), sorted(activation_bits)
    narrow = uniform(small, weight_bits=w1, activation_bits=a1)
    times = [
        Roofline(device).latency(graph, plan).ms
        for graph, plan in (
            (small, narrow),
            (small, uniform(small, weight_bits=w2, activation_bits=a2)),
            (large, narrow),
        )
    ]
    assert times[0] <= times[1] * (1 + 1e-12)
    assert times[0] <= times[2] * (1 + 1e-12)


def test_4_bit_weights_are_faster_only_where_the_unit_has_them(builder):
    graph = one_linear(builder, 512, 512, 512)

    def gain(name):
        model = Roofline(DEVICES[name])
        return model.latency(graph, uniform(graph)).ms / model.latency(graph, uniform(graph, weight_bits=4)).ms

    assert gain("host_cpu") > 1.5
    for name in ("xeon_vnni", "client_avx_vnni", "raspberry_pi_4", "raspberry_pi_5"):
        assert gain(name) == pytest.approx(1.0)


def test_a_plan_that_the_device_cannot_execute(hybrid):
    with pytest.raises(HardwareError, match="Jetson Nano"):
        Roofline(DEVICES["jetson_nano"]).latency(hybrid, uniform(hybrid))
    assert Roofline(DEVICES["jetson_nano"]).latency(hybrid, dict.fromkeys(uniform(hybrid), FLOAT)).conversions_ms == 0


def passes(graph, **configs):
    plan = [configs[op.name] for op in graph.ops]
    return [(found.tensor.split("_")[0], found.bits) for found in conversions(TensorTable(graph), plan)]


def test_conversions_between_unlike_neighbours(builder):
    w8, w4 = LayerQuantConfig(), LayerQuantConfig(activation_bits=4)
    b = builder((8, 8))
    x = b.linear("a", "image", 8)
    b.linear("b", x, 8)
    b.linear("c", x, 8)
    graph = b.build()
    assert passes(graph, a=w8, b=w8, c=w8) == [("image", 8)]
    assert passes(graph, a=w8, b=w8, c=w4) == [("image", 8), ("linear", 4)]
    assert passes(graph, a=FLOAT, b=w8, c=w8) == [("linear", 8)]
    assert passes(graph, a=w8, b=w8, c=FLOAT) == [("image", 8), ("linear", 8)]
    assert passes(graph, a=FLOAT, b=FLOAT, c=FLOAT) == []


def test_a_float_operation_between_costs_a_conversion_and_an_activation_function_does_not(builder):
    w8 = LayerQuantConfig()
    for kind, expected in (("layer", [("image", 8), ("layer", 8)]), ("gelu", [("image", 8)])):
        b = builder((8, 8))
        b.linear("b", b.node(kind, b.linear("a", "image", 8)), 8)
        assert passes(b.build(), a=w8, b=w8) == expected


def test_a_function_on_floating_point_results_costs_its_arithmetic_alone(builder):
    b = builder((64, 64))
    b.linear("b", b.node("silu", b.linear("a", "image", 64)), 64)
    graph, device = b.build(), DEVICES["host_cpu"]
    found = Roofline(device, threads=1).latency(graph, uniform(graph))
    rate = device.types["fp32"].peak_gmacs_per_s * device.utilisation_fraction["elementwise"].value
    assert found.float_ops_ms == pytest.approx(64 * 64 / rate * 1e-6)


def test_fused_operations_cost_nothing(builder):
    def float_ms(kind, name):
        b = builder((8, 8))
        b.linear("b", b.node(kind, b.linear("a", "image", 8)), 8)
        graph = b.build()
        return Roofline(DEVICES[name]).latency(graph, uniform(graph)).float_ops_ms

    assert float_ms("gelu", "raspberry_pi_5") == 0
    assert float_ms("gelu", "edge_tpu") > 0
    assert float_ms("softmax", "raspberry_pi_5") > 0
