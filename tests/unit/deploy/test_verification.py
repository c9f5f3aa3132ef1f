"""The verdict on packed logits, on logits whose verdict is known."""

import pytest
import torch

from evoquant.deploy import compare_packed
from evoquant.deploy.bench import agreement, ratios
from evoquant.deploy.measurement import Comparison, Latency
from evoquant.deploy.verification import NEAR_TIE
from evoquant.evaluate import LabelledImages


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(3)
    simulated = torch.randn(200, 10, generator=generator)
    reference = simulated + 0.2 * torch.randn(200, 10, generator=generator)
    images = LabelledImages((torch.zeros(200, 1),), simulated.argmax(1), reference)
    return simulated, images


def test_equal_logits_pass(logits):
    simulated, images = logits
    found = compare_packed(simulated.clone(), simulated, images)
    assert found["passed"]
    assert found["same_top1_on_all_images"]
    assert found["packed_top1"] == found["simulated_top1"] == 100.0
    assert found["logit_difference_max"] == 0.0


def test_noise_as_large_as_quantization_fails(logits):
    simulated, images = logits
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(200, 10, generator=generator)
    assert compare_packed(simulated + 0.01 * noise, simulated, images)["logit_difference_rms"] == pytest.approx(
        0.01, rel=0.1
    )
    assert not compare_packed(simulated + 0.2 * noise, simulated, images)["passed"]


def test_another_class_passes_only_where_two_are_tied(logits):
    simulated, images = logits
    spread = float(simulated.std())
    tied, clear = simulated.clone(), simulated.clone()
    best = simulated[7].topk(2)
    tied[7, best.indices[1]] = best.values[0] - 0.5 * NEAR_TIE * spread
    packed = tied.clone()
    packed[7, best.indices[1]] = best.values[0] + 1e-3
    found = compare_packed(packed, tied, images)
    assert found["differing_images"] == [7]
    assert found["differing_near_ties"] == 1
    assert found["passed"]
    clear[7, best.indices[0]] = simulated[7].max() + 5 * NEAR_TIE * spread
    packed = clear.clone()
    packed[7, best.indices[0]] = simulated[7].min()
    found = compare_packed(packed, clear, images)
    assert found["differing_images"] == [7]
    assert found["differing_near_ties"] == 0
    assert not found["passed"]


def comparison(table, measured):
    return Comparison(Latency.of([measured] * 5, 1), table, "cpu")


def test_agreement_counts_what_lies_within_the_tolerance():
    found = agreement([comparison(1.05, 1.0), comparison(2.3, 2.0), comparison(3.0, 3.1), comparison(3.9, 4.0)])
    assert found["within_tolerance"] == 3
    assert found["largest_error"] == pytest.approx(0.15)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert agreement([comparison(1.0, 1.0)])["rank_correlation"] is None


def test_ratios_take_the_best_of_the_eight_bit_baselines():
    times = {"evoquant_w8a8": 2.0, "onnxruntime_fp32": 6.0, "onnxruntime_int8_a": 5.0, "onnxruntime_int8_b": 3.0}
    found = ratios({name: Latency.of([value], 1) for name, value in times.items()})["evoquant_w8a8"]
    assert found["times_onnxruntime_fp32"] == pytest.approx(3.0)
    assert found["times_best_onnxruntime_int8"] == pytest.approx(1.5)


def test_a_latency_names_its_quartiles():
    latency = Latency.of([3.0, 1.0, 2.0, 5.0, 4.0], 2)
    assert (latency.median_ms, latency.iqr_ms, latency.fastest_ms, latency.threads) == (3.0, 2.0, 1.0, 2)
    assert latency.to_dict()["samples"] == [3.0, 1.0, 2.0, 5.0, 4.0]
