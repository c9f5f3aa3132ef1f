import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import pytest

from evoquant import kernels
from evoquant.errors import HardwareError
from evoquant.hardware import (
    CostModel,
    Kind,
    MeasuredLatency,
    Roofline,
    bundle_items,
    calibrate_roofline,
    load_device,
    machine_table,
    reachable_cases,
)
from evoquant.hardware.calibration import kernel_work
from evoquant.hardware.filling import fill
from evoquant.hardware.measured import float_work
from evoquant.hardware.table import Entry, Key, LatencyTable, key_of
from evoquant.hardware.work import WorkClass
from evoquant.kernels import KernelCase
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

MOST_MEDIAN_ERROR = 0.05
"""Of a roofline that was fitted to the times of a roofline."""
MOST_SINGLE_ERROR = 0.3
"""Of one of its entries."""

HOST = load_device("host_cpu")
PRECISIONS = [FLOAT, *(LayerQuantConfig(weight_bits=w, activation_bits=a) for w in (2, 4, 6, 8) for a in (4, 8))]


@dataclass(frozen=True)
class Timing:
    case: KernelCase
    median_ms: float
    iqr_ms: float


def time_of(case):
    """A roofline of which the calibration should find the figures: 2 µs a call, 30 GB/s, rates by width."""
    work = kernel_work(key_of(case), HOST)
    if work is None:
        return 0.002
    rate = {"fp32": 40.0, "w8a8": 80.0}.get(work.native, 120.0)
    if work.work is WorkClass.ELEMENTWISE:
        rate = 1.0
    moved = 4 * (work.read + work.written) + work.weight_bytes
    quantize = work.read / 10 / 1e6 if work.is_quantized else 0.0
    return max(work.macs / rate, moved / 30) / 1e6 + quantize + work.applied / 1.0 / 1e6 + 0.002


def clock(cases):
    return [Timing(case, time_of(case), 0.1 * time_of(case)) for case in cases]


def table_of(graph, precisions=PRECISIONS):
    cases = reachable_cases(graph, {op.name: precisions for op in graph.ops}, HOST, kernels)
    return fill(LatencyTable({"cpu": "invented"}, 1, {}), cases, clock)


def large_table(make_hybrid):
    entries = {}
    for size, width in ((16, 16), (32, 16), (32, 32), (64, 24), (24, 48), (48, 64)):
        entries |= table_of(make_hybrid(size, width)).entries
    return LatencyTable({"cpu": "invented"}, 1, entries)


def uniform(graph, **fields):
    return {op.name: LayerQuantConfig(**fields) for op in graph.ops}


def test_the_sum_of_a_small_model(builder):
    b = builder((1, 8, 8))
    x = b.node("silu", b.linear("fc1", "image", 16))
    x = b.node("layer_norm", b.linear("fc2", x, 8))
    graph = b.build()
    entries = {
        Key("gemm+silu", (8, 16, 8), "w8a8-u8out"): Entry(0.5, 0.03),
        Key("gemm", (8, 8, 16), "w4a8-u8in"): Entry(0.25, 0.04),
        Key("layer_norm", (8, 8), "fp32"): Entry(0.125, 0.0),
    }
    model = MeasuredLatency(LatencyTable({}, 1, entries), HOST, kernels)
    found = model.latency(graph, {"fc1": LayerQuantConfig(), "fc2": LayerQuantConfig(weight_bits=4)})
    assert found.per_op == {"fc1": 0.5, "fc2": 0.25}
    assert (found.ms, found.float_ops_ms, found.conversions_ms) == (0.875, 0.125, 0.0)
    assert found.spread_ms == pytest.approx(0.05)
    assert found.kind == "measured"
    assert found.rests_on == (Kind.MEASURED,)


def test_a_missing_time_names_the_operation(hybrid):
    model = MeasuredLatency(table_of(hybrid, [FLOAT]), HOST, kernels)
    with pytest.raises(HardwareError, match=r"No latency for 'stem' at W8A8: .*no entry for conv\+silu .*w8a8"):
        model.latency(hybrid, uniform(hybrid))


def test_every_plan_of_the_choices_has_its_times(hybrid):
    table = table_of(hybrid)
    model = MeasuredLatency(table, HOST, kernels)
    for first, second in pairwise(PRECISIONS):
        mixed = {op.name: (first, second)[index % 2] for index, op in enumerate(hybrid.ops)}
        found = model.latency(hybrid, mixed)
        assert found.ms == pytest.approx(sum(found.per_op.values()) + found.float_ops_ms)
    costs = CostModel(hybrid, HOST, model).costs(uniform(hybrid))
    assert costs.latency_kind == "measured"
    assert costs.latency_spread_ms > 0


def test_interpolated_times_are_not_passed_for_measured_ones(hybrid):
    table = table_of(hybrid)
    guessed = {key: dataclasses.replace(entry, kind="interpolated") for key, entry in table.entries.items()}
    found = MeasuredLatency(table.with_entries(guessed), HOST, kernels).latency(hybrid, uniform(hybrid))
    assert Kind.DERIVED in found.rests_on


def test_what_no_kernel_does_costs_a_copy_and_says_so(builder):
    b = builder((1, 8, 8))
    b.node("cumsum", b.linear("fc", "image", 8))
    graph = b.build()
    assert float_work(graph, kernels, ()).by_copy == ("cumsum",)
    found = MeasuredLatency(table_of(graph), HOST, kernels).latency(graph, uniform(graph))
    assert found.rests_on == (Kind.MEASURED, Kind.ASSUMED)


def test_an_activation_function_is_timed_once(hybrid):
    cases = reachable_cases(hybrid, {op.name: [FLOAT] for op in hybrid.ops}, HOST, kernels)
    names = [case.op for case in cases]
    assert "gemm+silu" in names
    assert "depthwise+silu" in names
    assert "gemm+gelu" in names
    assert "silu" not in names
    assert {"layer_norm", "add", "mean"} <= set(names)
    assert len(cases) == len(set(cases))


def test_the_softmax_of_an_attention_is_timed_with_its_products(hybrid):
    names = [case.op for case in reachable_cases(hybrid, {op.name: [FLOAT] for op in hybrid.ops}, HOST, kernels)]
    assert {"matmul+softmax", "softmax+matmul"} <= set(names)
    assert not {"matmul", "softmax"} & set(names)


def test_the_bundle_has_every_reachable_case(hybrid):
    choices = {op.name: PRECISIONS for op in hybrid.ops}
    items = list(bundle_items(hybrid, choices, HOST, kernels))
    assert {key_of(item.case) for item in items} == {
        key_of(case) for case in reachable_cases(hybrid, choices, HOST, kernels)
    }
    assert all(item.is_quantized != item.case.precision.startswith("fp32") for item in items)


def test_a_calibration_finds_the_roofline_behind_a_table(make_hybrid):
    table = large_table(make_hybrid)
    found = calibrate_roofline(table, HOST)
    assert found.held_out.median < MOST_MEDIAN_ERROR
    assert found.fitted.entries + found.held_out.entries == len(table.entries)
    assert found.device.peak_gmacs_per_s["w8a8"].kind is Kind.MEASURED
    assert calibrate_roofline(table, HOST) == found


def test_the_calibrated_device_predicts_what_the_fit_predicts(make_hybrid):
    graph = make_hybrid(32, 32)
    table = large_table(make_hybrid)
    device = calibrate_roofline(table, HOST).device
    plan = uniform(graph)
    predicted = Roofline(device).latency(graph, plan).per_op
    measured = MeasuredLatency(table, HOST, kernels).latency(graph, plan).per_op
    for op in ("attn.q", "attn.av", "blocks.0.project", "mlp.fc2"):
        assert predicted[op] == pytest.approx(measured[op], rel=MOST_SINGLE_ERROR)


def test_a_calibration_needs_products():
    with pytest.raises(HardwareError, match="at least 8 measured entries of products, but the table has 0"):
        calibrate_roofline(LatencyTable({}, 1, {Key("unknown", (1,), "fp32"): Entry(1.0, 0.0)}), HOST)


@pytest.mark.parametrize(
    ("op", "shape", "macs"),
    [
        ("gemm", (5, 7, 11), 5 * 7 * 11),
        ("matmul", (2, 5, 7, 11, 1), 2 * 5 * 7 * 11),
        ("conv", (9, 9, 4, 6, 3, 3, 2, 2, 1, 1, 1, 1, 2), 25 * 6 * 2 * 9),
        ("depthwise", (8, 8, 4, 3, 3, 1, 1, 1, 1, 1, 1), 64 * 4 * 9),
    ],
)
def test_the_work_of_an_entry_agrees_with_the_kernels(op, shape, macs):
    work = kernel_work(Key(op, shape, "w8a8"), HOST)
    assert work.macs == macs == KernelCase(op, shape, "w8a8").macs


def test_the_table_of_this_machine_is_kept_and_reused(monkeypatch, tmp_path, hybrid):
    monkeypatch.setattr(kernels, "fingerprint", lambda *, threads, isa: {"cpu": isa or "invented", "threads": threads})
    cases = reachable_cases(hybrid, {op.name: [FLOAT] for op in hybrid.ops}, HOST, kernels)
    table = machine_table(cases, folder=tmp_path, measure=clock)
    assert len(list(tmp_path.glob("latency-*-t1.json"))) == 1

    def not_again(missing):
        assert not list(missing)
        return []

    assert machine_table(cases, folder=tmp_path, measure=not_again) == table


@pytest.mark.skipif(not kernels.info().available, reason="the native kernels are not built")
def test_real_kernels_can_be_timed(builder, tmp_path):
    b = builder((1, 8, 8))
    b.node("softmax", b.node("silu", b.linear("fc", "image", 8)))
    graph = b.build()
    cases = reachable_cases(graph, {"fc": [FLOAT, LayerQuantConfig()]}, HOST, kernels)
    model = MeasuredLatency(machine_table(cases, folder=tmp_path), HOST, kernels)
    assert model.latency(graph, uniform(graph)).ms > 0


@pytest.mark.skipif(not kernels.info().available, reason="the native kernels are not built")
def test_kernels_that_run_alike_are_timed_once(tmp_path):
    narrow, wide = (KernelCase("gemm", (8, 16, 16), precision) for precision in ("w4a8", "w8a8"))
    table = machine_table([narrow, wide], isa="reference", folder=tmp_path)
    assert table.entries[key_of(narrow)] == table.entries[key_of(wide)]


def test_a_neighbour_that_takes_or_gives_other_codes_changes_the_sum(builder):
    """A reader of uneven codes makes its writer look levels up; a writer with groups leaves its reader to quantize."""
    b = builder((1, 8, 64))
    b.linear("fc2", b.linear("fc1", "image", 64), 8)
    graph = b.build()
    times = {
        (64, "w8a8-u8out"): 10.0, (64, "w8a8-lloydout"): 10.5, (64, "w8a8"): 11.0, (64, "w4a8-g32"): 6.0,
        (8, "w8a8-u8in"): 2.0, (8, "w8a4-lloyd-u8in"): 2.25, (8, "w8a8"): 3.0, (8, "w16a16"): 5.0,
    }  # fmt: skip
    entries = {Key("gemm", (8, n, 64), name): Entry(ms, 0.0) for (n, name), ms in times.items()}
    model = MeasuredLatency(LatencyTable({}, 1, entries), HOST, kernels)
    plain, uneven = LayerQuantConfig(), LayerQuantConfig(activation_bits=4, activation_scheme="lloyd")
    wide = LayerQuantConfig(weight_bits=16, activation_bits=16)
    grouped = LayerQuantConfig(weight_bits=4, granularity="per_group", group_size=32)
    assert model.latency(graph, {"fc1": plain, "fc2": plain}).ms == 12.0
    assert model.latency(graph, {"fc1": plain, "fc2": uneven}).ms == 10.0 + 2.25 + 0.5
    assert model.latency(graph, {"fc1": plain, "fc2": wide}).ms == 10.0 + 5.0 + 1.0
    assert model.latency(graph, {"fc1": grouped, "fc2": plain}).ms == 6.0 + 2.0 + 1.0
    estimate = table_with_a_guess(entries).latency(graph, {"fc1": plain, "fc2": uneven})
    assert Kind.DERIVED in estimate.rests_on


def table_with_a_guess(entries):
    """The writer's time with uneven codes is interpolated, so a sum with it is not measured throughout."""
    guess = Key("gemm", (8, 64, 64), "w8a8-lloydout")
    entries = {**entries, guess: dataclasses.replace(entries[guess], kind="interpolated")}
    return MeasuredLatency(LatencyTable({}, 1, entries), HOST, kernels)
