"""Tuning of scales and biases towards the answers of the floating-point model, on a small convolutional network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoquant.calibrate import activation_params, collect
from evoquant.calibrate.block_run import BlockRun, Quantizers, WeightPart
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.segment import whole_network
from evoquant.calibrate.tuning import tune
from evoquant.config.quantizers import TuningSpec
from evoquant.graph import CapturedModel, capture
from evoquant.quant import FakeQuant, fake_quantize, weight_params
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme

SIZE = 8
SPEC = TuningSpec(steps=60, scale_rate=0.001, bias_rate=0.003)
CONFIGS = (
    LayerQuantConfig(weight_bits=3, activation_bits=5),
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.NORMAL, activation_bits=5),
    LayerQuantConfig(weight_bits=3, granularity=QuantizationGranularity.PER_GROUP, group_size=8, activation_bits=5),
)
FIXED = LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_TENSOR, activation_bits=5)


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    return capture(nn.Sequential(*layers, *head), (3, SIZE, SIZE), name="convolutions")


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.randn(48, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return functional.interpolate(3 * coarse, (SIZE, SIZE), mode="bilinear")


def _rounded(captured: CapturedModel, config: LayerQuantConfig) -> dict[str, QuantizedWeight]:
    """Each weight rounded to the nearest, without groups where they do not fit."""
    found = {}
    for op in captured.graph.ops:
        weight = captured.weight(op.name)
        assert weight is not None
        fits = weight[0].numel() % (config.group_size or 1) == 0
        own = config if fits else replace(config, group_size=None, granularity=QuantizationGranularity.PER_CHANNEL)
        params = weight_params(weight, own)
        found[op.name] = QuantizedWeight(fake_quantize(weight, params), params)
    return found


def _quantizers(captured: CapturedModel, images: Tensor, config: LayerQuantConfig) -> Quantizers:
    statistics = collect(captured.program, sorted({op.inputs[0] for op in captured.graph.ops}), [images])
    return {(op.name, 0): FakeQuant(activation_params(statistics[op.inputs[0]], config)) for op in captured.graph.ops}


def _divergence(
    captured: CapturedModel, weights: dict[str, QuantizedWeight], quantizers: Quantizers, images: Tensor
) -> float:
    parts = {name: WeightPart(stored, captured.bias(name)) for name, stored in weights.items()}
    with torch.no_grad():
        answer = BlockRun(whole_network(captured), parts, {}, quantizers)(images, {}).log_softmax(1)
        expected = captured(images).log_softmax(1)
    return float(functional.kl_div(answer, expected, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
def test_tuning_lessens_the_divergence_and_leaves_the_codes(
    captured: CapturedModel, images: Tensor, config: LayerQuantConfig
) -> None:
    """On images that were not learned from; the same bits every time."""
    start, quantizers = _rounded(captured, config), _quantizers(captured, images, config)
    found = tune(captured, start, quantizers, images[:32], SPEC)
    before, after = (_divergence(captured, weights, quantizers, images[32:]) for weights in (start, found))
    assert after < 0.7 * before
    again = tune(captured, start, quantizers, images[:32], SPEC)
    for name, tuned in found.items():
        assert torch.equal(tuned.weight, again[name].weight)
        assert tuned.steps == ("nearest", "tuned")
        rows = len(tuned.weight)
        factors = (tuned.params.scale / start[name].params.scale).reshape(rows, -1)
        torch.testing.assert_close(factors, factors[:, :1].expand(factors.shape))
        by_row = factors[:, :1].reshape(rows, *[1] * (tuned.weight.ndim - 1))
        torch.testing.assert_close(tuned.weight, start[name].weight * by_row)
        torch.testing.assert_close(fake_quantize(tuned.weight, tuned.params), tuned.weight)


def test_a_scale_of_a_whole_tensor_stays(captured: CapturedModel, images: Tensor) -> None:
    """Only biases are tuned."""
    start, quantizers = _rounded(captured, FIXED), _quantizers(captured, images, FIXED)
    found = tune(captured, start, quantizers, images, _with_steps(SPEC, 3))
    for name, tuned in found.items():
        assert torch.equal(tuned.weight, start[name].weight)
        assert torch.equal(tuned.params.scale, start[name].params.scale)
        assert tuned.bias is not None
        assert not torch.equal(tuned.bias, captured.bias(name))


def test_no_steps_change_nothing(captured: CapturedModel, images: Tensor) -> None:
    """But that each weight has its bias with it."""
    start = _rounded(captured, CONFIGS[0])
    found = tune(captured, start, {}, images, _with_steps(SPEC, 0))
    for name, tuned in found.items():
        torch.testing.assert_close(tuned.weight, start[name].weight)
        assert torch.equal(tuned.bias, captured.bias(name))


def _with_steps(spec: TuningSpec, steps: int) -> TuningSpec:
    """The same with another number of steps."""
    return spec.model_copy(update={"steps": steps})
