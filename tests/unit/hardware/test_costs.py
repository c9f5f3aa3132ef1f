import pytest

from evoquant.errors import HardwareError
from evoquant.hardware import CostModel, Roofline, device_names, energy, legalise, load_device, memory
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT


def uniform(graph, **fields):
    return {op.name: LayerQuantConfig(**fields) for op in graph.ops}


def model(graph, name="host_cpu"):
    device = load_device(name)
    return CostModel(graph, device, Roofline(device))


@pytest.mark.parametrize("name", [name for name in device_names() if not name.startswith("jetson_n")])
def test_costs_agree_with_the_single_models(hybrid, name):
    if name == "jetson_tx2":
        plan = dict.fromkeys(uniform(hybrid), FLOAT)
    else:
        plan = uniform(hybrid, weight_bits=4, activation_bits=6)
    device = load_device(name)
    legal = {op.name: legalise(op, plan[op.name], device).config for op in hybrid.ops}
    latency = Roofline(device).latency(hybrid, plan)
    band = energy(hybrid, plan, device, latency.ms)
    stored = memory(hybrid, legal)
    found = model(hybrid, name)
    for costs in (found.costs(plan), found.costs(plan), found.costs(legal)):
        assert costs.latency_ms == pytest.approx(latency.ms)
        assert costs.latency_kind == "predicted"
        assert (costs.energy_low_mj, costs.energy_mj, costs.energy_high_mj) == pytest.approx(
            (band.low_mj, band.mj, band.high_mj)
        )
        assert costs.breakdown.memory == stored
        assert costs.memory_mb == (stored.model_size_bytes + stored.peak_activation_bytes) / 1e6
    assert found.legal_plan(plan) == legal


def test_bit_operations_and_mean_width(builder):
    b = builder((4, 10))
    b.linear("b", b.linear("a", "image", 10), 30)
    graph = b.build()
    plan = {"a": LayerQuantConfig(weight_bits=4), "b": LayerQuantConfig(weight_bits=8)}
    costs = model(graph).costs(plan)
    assert costs.bops == 400 * 4 * 8 + 1200 * 8 * 8
    assert costs.average_bits == pytest.approx((100 * 4 + 300 * 8) / 400)


def test_memory_is_of_the_stored_form_and_time_of_the_executed_one(hybrid):
    narrow, wide = (model(hybrid, "xeon_vnni").costs(uniform(hybrid, weight_bits=bits)) for bits in (4, 8))
    assert narrow.model_size_bytes < 0.65 * wide.model_size_bytes
    assert narrow.latency_ms == pytest.approx(wide.latency_ms, rel=0.01)


def test_an_impossible_plan_is_refused(hybrid):
    with pytest.raises(HardwareError, match="cannot execute 'stem'"):
        model(hybrid, "jetson_tx2").costs(uniform(hybrid))
