import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import HardwareError
from evoquant.hardware import Kind, device_names, energy, legalise, load_device, quadratic_law, rapl
from evoquant.hardware.device import NativeType
from evoquant.hardware.energy import mac_pj
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

DEVICES = {name: load_device(name) for name in device_names()}
INTEGER = sorted(name for name, device in DEVICES.items() if device.refuses_quantized is None and name != "edge_tpu")
HOROWITZ_INT8_TO_FP32 = 15.3


def uniform(graph, **fields):
    return {op.name: LayerQuantConfig(**fields) for op in graph.ops}


def native(name, weight_bits, activation_bits):
    return NativeType(name, weight_bits, activation_bits, 1.0)


def test_an_int8_mac_takes_a_fifteenth_of_an_fp32_one_at_45_nm():
    host = DEVICES["host_cpu"]
    float_pj, _ = mac_pj(native("fp32", 32, 32), host)
    low, high = mac_pj(native("w8a8", 8, 8), host)
    assert low == high
    assert float_pj / low == pytest.approx(HOROWITZ_INT8_TO_FP32, abs=0.05)


def test_the_two_laws_of_a_mixed_mac():
    low, high = mac_pj(native("w4a8", 4, 8), DEVICES["host_cpu"])
    assert low == pytest.approx(0.2 * 4 * 8 / 64 + 0.1)
    assert high == pytest.approx(0.2 * 64 / 64 + 0.1)
    assert mac_pj(native("fp16", 32, 32), DEVICES["host_cpu"]) == (1.5, 1.5)


def test_the_parts_of_one_layer_on_a_device_that_computes_in_bytes(builder):
    b = builder((4, 100))
    b.linear("fc", "image", 50)
    graph = b.build()
    pi = DEVICES["raspberry_pi_4"]
    cost = energy(graph, uniform(graph, weight_bits=4), pi, latency_ms=2.0)
    weights, macs = 5000, 20000
    assert cost.compute_mj == pytest.approx((macs * 0.3 + weights * 0.03) * 1e-9)
    stored_bits = 8 * (weights // 2 + 50 * 4 + 5)
    tensor_bits = 8 * (400 * 1 + 200 * 4)
    assert cost.memory_mj == pytest.approx((stored_bits * (8 + 1.6) + 2 * tensor_bits * 1.6 - 8 * 400 * 0) * 1e-9)
    assert cost.static_mj == pytest.approx(3 * 2.0)
    assert cost.low_mj == cost.high_mj == pytest.approx(cost.mj)
    assert cost.rests_on == (Kind.PUBLISHED, Kind.ASSUMED)


@settings(max_examples=40, deadline=None)
@given(
    weight_bits=st.sampled_from([2, 4, 6, 8, 32]),
    activation_bits=st.sampled_from([4, 6, 8, 32]),
    name=st.sampled_from(INTEGER),
)
def test_energy_lies_between_its_laws_and_is_the_sum_of_its_parts(hybrid, weight_bits, activation_bits, name):
    if FLOAT.weight_bits in (weight_bits, activation_bits):
        weight_bits = activation_bits = 32
    plan = uniform(hybrid, weight_bits=weight_bits, activation_bits=activation_bits)
    cost = energy(hybrid, plan, DEVICES[name], latency_ms=1.0)
    assert cost.low_mj <= cost.mj <= cost.high_mj
    assert cost.mj == pytest.approx(cost.compute_mj + cost.memory_mj + cost.static_mj)


@pytest.mark.parametrize("name", INTEGER)
def test_more_bits_never_take_less_energy(hybrid, name):
    for side in ("weight_bits", "activation_bits"):
        costs = [energy(hybrid, uniform(hybrid, **{side: bits}), DEVICES[name], 1.0) for bits in (4, 5, 6, 7, 8)]
        costs.append(energy(hybrid, dict.fromkeys(uniform(hybrid), FLOAT), DEVICES[name], 1.0))
        for narrow, wide in pairwise(costs):
            assert narrow.low_mj <= wide.low_mj
            assert narrow.high_mj <= wide.high_mj


@pytest.mark.parametrize("name", INTEGER)
def test_a_larger_model_never_takes_less_energy(make_hybrid, name):
    graphs = [make_hybrid(size, width, blocks) for size, width, blocks in ((16, 16, 1), (32, 16, 1), (32, 16, 3))]
    costs = [energy(graph, uniform(graph), DEVICES[name], 1.0).mj for graph in graphs]
    assert costs == sorted(costs)


def test_a_tensor_too_large_for_the_cache_moves_through_dram(builder):
    def moved(rows):
        b = builder((rows, 64))
        b.linear("fc", "image", 64)
        graph = b.build()
        return energy(graph, uniform(graph), DEVICES["raspberry_pi_5"], 0.0).memory_mj

    fits, too_large = 2**21 // 64 // 4, 2**21 // 64 // 4 + 1
    assert moved(too_large) - moved(fits) > 64 * fits * 4 * 8 * 6 * 1e-9


def test_the_quadratic_law_of_uniform_widths(hybrid):
    host = DEVICES["host_cpu"]
    full = quadratic_law(hybrid, dict.fromkeys(uniform(hybrid), FLOAT), host)
    compute = hybrid.macs * 4.6e-9 / full
    for bits in (4, 8, 16):
        part = quadratic_law(hybrid, uniform(hybrid, weight_bits=bits, activation_bits=bits), host) / full
        assert part == pytest.approx(compute * (bits / 32) ** 2 + (1 - compute) * bits / 32)


def test_illegal_plans_are_refused(hybrid):
    with pytest.raises(HardwareError, match="cannot execute 'stem' at W8A8"):
        energy(hybrid, uniform(hybrid), DEVICES["jetson_nano"], 1.0)


def test_the_executed_width_decides_not_the_stored_one(hybrid):
    op = hybrid.op["mlp.fc1"]
    executed = [
        legalise(op, LayerQuantConfig(weight_bits=bits), DEVICES["xeon_vnni"]).executed.name for bits in (2, 4, 8)
    ]
    assert executed == ["w8a8"] * 3


def counter(root, name, value, largest=1_000_000):
    folder = root / name
    folder.mkdir()
    for file, text in (("name", f"package-{name[-1]}"), ("energy_uj", value), ("max_energy_range_uj", largest)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_measured_energy_is_the_mean_over_calls_also_when_a_counter_starts_again(tmp_path):
    first = counter(tmp_path, "intel-rapl:0", 999_000)
    counter(tmp_path, "intel-rapl:1", 5)
    used = iter([1_000, 5_000 - 1])

    def work():
        value = (int((first / "energy_uj").read_text()) + next(used)) % 1_000_001
        (first / "energy_uj").write_text(str(value))

    assert [domain.name for domain in rapl.domains(tmp_path)] == ["package-0", "package-1"]
    assert rapl.measure_mj(work, repetitions=2, root=tmp_path) == pytest.approx((1_000 + 4_999) * 1e-3 / 2)


def test_a_machine_without_counters_says_so(tmp_path):
    with pytest.raises(HardwareError, match=f"no readable energy counter under {re.escape(str(tmp_path))}"):
        rapl.measure_mj(lambda: None, repetitions=1, root=tmp_path)
