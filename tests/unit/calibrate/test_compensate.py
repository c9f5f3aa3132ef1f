"""One weight with the least output error: scales of rows that compensation chooses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from evoquant.calibrate.compensate import QuantizedWeight, SplitError, compensate
from evoquant.calibrate.moments import SplitMoments, collect_moments, rows_of
from evoquant.config.quantizers import CompensationSpec
from evoquant.graph import CapturedModel, capture
from evoquant.quant import fake_quantize, weight_params
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme

WITHOUT = CompensationSpec(scale_fractions=())
ROW_CONFIGS = (
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.NORMAL),
    LayerQuantConfig(weight_bits=3, weight_symmetric=False),
    LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_GROUP, group_size=8),
    LayerQuantConfig(weight_bits=8),
)
FIXED_CONFIGS = (
    LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_TENSOR),
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.POWER_OF_TWO),
)


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 24, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    return capture(nn.Sequential(*layers, *head), (3, 8, 8), name="convolutions")


@pytest.fixture(scope="module")
def moments(captured: CapturedModel) -> dict[str, SplitMoments]:
    batches = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    return dict(collect_moments(captured.program, captured.graph, batches))


def _compensated(
    captured: CapturedModel, moments: SplitMoments, name: str, config: LayerQuantConfig, settings: CompensationSpec
) -> tuple[QuantizedWeight, float]:
    """The weight, and its output error on the fitted images."""
    op, weight = captured.graph.op[name], captured.weight(name)
    assert weight is not None
    error = SplitError.of_float_inputs(moments)
    found = compensate(op, weight, captured.bias(name), partial(weight_params, config=config), error, settings)
    change = rows_of(found.weight - weight, op)
    return found, float(error.fitted.of(change, error.fitted.best_bias(change)).sum())


@pytest.mark.parametrize("name", ["1", "2"])
@pytest.mark.parametrize("config", ROW_CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
def test_scales_of_rows_lessen_the_error(
    captured: CapturedModel, moments: dict[str, SplitMoments], name: str, config: LayerQuantConfig
) -> None:
    """A depthwise and a pointwise convolution; every value stays on the grid of its row."""
    if config.group_size is not None and name == "1":
        pytest.skip("nine weights are no groups of eight")
    before, error_before = _compensated(captured, moments[name], name, config, WITHOUT)
    found, error = _compensated(captured, moments[name], name, config, CompensationSpec())
    assert "scales" in found.steps
    assert error < 0.99 * error_before
    torch.testing.assert_close(fake_quantize(found.weight, found.params), found.weight, rtol=1e-5, atol=1e-7)
    assert bool((found.params.scale != before.params.scale).any())


@pytest.mark.parametrize("config", FIXED_CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
def test_scales_that_rows_do_not_have_stay(
    captured: CapturedModel, moments: dict[str, SplitMoments], config: LayerQuantConfig
) -> None:
    """One scale for all rows, or only powers of two."""
    before, _ = _compensated(captured, moments["2"], "2", config, WITHOUT)
    found, _ = _compensated(captured, moments["2"], "2", config, CompensationSpec())
    assert found.steps == before.steps
    torch.testing.assert_close(found.weight, before.weight, rtol=0, atol=0)
