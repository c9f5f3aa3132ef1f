"""Learned quantizers: before any step they are the quantizers that they start from, and their gradients are LSQ's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.learned import LEARNED_SCALES, LearnedQuantizer, LearnedWeight
from evoquant.quant import QuantParams, dequantize, fake_quantize, quantize, weight_params
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme


def _params(scheme: QuantizationScheme, zero_point: int, codes: tuple[int, int]) -> QuantParams:
    zero = torch.tensor(zero_point, dtype=torch.int32)
    return QuantParams(scheme, 4, torch.tensor(0.11), zero, *codes)


HEADS = QuantParams(
    QuantizationScheme.UNIFORM, 4, torch.tensor([0.1, 0.3]), torch.zeros(2, dtype=torch.int32), -7, 7, axis=1
)
OPERANDS = {
    "asymmetric": _params(QuantizationScheme.UNIFORM, 5, (0, 15)),
    "heads": HEADS,
    "lloyd": QuantParams(
        QuantizationScheme.LLOYD, 2, torch.tensor(0.11), torch.tensor(0, dtype=torch.int32), 0, 3, levels=(-4, 0, 3, 11)
    ),
    "log2": _params(QuantizationScheme.LOG2, 0, (0, 15)),
}


@pytest.fixture
def values() -> Tensor:
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("params", OPERANDS.values(), ids=OPERANDS)
def test_it_quantizes_as_it_is_told_before_it_learns(params: QuantParams, values: Tensor) -> None:
    learned = LearnedQuantizer(params)
    assert torch.equal(learned(values), fake_quantize(values, params))
    assert torch.equal(learned.result().scale, params.scale)


@pytest.mark.parametrize("params", [OPERANDS["asymmetric"], HEADS], ids=["asymmetric", "heads"])
def test_gradients_are_those_of_rounding_that_is_passed_straight_through(params: QuantParams, values: Tensor) -> None:
    """The second implementation lets autograd differentiate s·(u + (round(u) − u)), u clipped to the ends."""
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    learned, x = LearnedQuantizer(params), values.clone().requires_grad_(True)
    (learned(x) * weights).sum().backward()
    y, log_factor = values.clone().requires_grad_(True), torch.zeros_like(params.scale, requires_grad=True)
    shape = (1, -1, 1, 1) if params.axis is not None else ()
    scale, zero_point = ((params.scale * log_factor.exp()).view(shape), params.zero_point.view(shape))
    clipped = torch.minimum(torch.maximum(y / scale, params.q_min - zero_point), params.q_max - zero_point)
    ((clipped + (clipped.round() - clipped).detach()) * scale * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(learned.log_factor.grad, log_factor.grad)


WEIGHTS = {
    "per channel": LayerQuantConfig(weight_bits=4),
    "asymmetric": LayerQuantConfig(weight_bits=3, weight_symmetric=False),
    "groups": LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_GROUP, group_size=8),
    "powers of two": LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.POWER_OF_TWO),
    "normal": LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.NORMAL),
    "log2": LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.LOG2),
}


@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_a_weight_stays_on_its_grid(config: LayerQuantConfig) -> None:
    """Before any step it is the weight that it starts from; after one, codes may differ and are codes still."""
    original = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    params = weight_params(original, config)
    start = QuantizedWeight(fake_quantize(original, params), params)
    learned = LearnedWeight(original, None, start)
    assert torch.equal(learned.result().weight, start.weight)
    parts = [part for part in (learned.codes, learned.log_factor) if part.requires_grad]
    if parts:
        (learned.weight() ** 2).sum().backward()
        with torch.no_grad():
            for part in parts:
                part -= 0.7 * torch.sign(part.grad)
    found = learned.result()
    assert torch.equal(dequantize(quantize(found.weight, found.params), found.params), found.weight)
    assert torch.equal(found.weight, start.weight) == (config.weight_scheme is QuantizationScheme.LOG2)
    scales_may_change = config.weight_scheme in LEARNED_SCALES
    assert torch.equal(found.params.scale, params.scale) != scales_may_change
