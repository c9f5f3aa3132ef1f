"""Distillation of a small network: nothing happens in no steps, and the answers come nearer in some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoquant.calibrate import activation_params, collect
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.distillation import distil
from evoquant.calibrate.fisher import operand_key
from evoquant.calibrate.fitted import FittedParameters
from evoquant.config.quantizers import DistillationSpec
from evoquant.graph import CapturedModel, capture
from evoquant.quant import dequantize, fake_quantize, quantize, weight_params
from evoquant.types import LayerQuantConfig

SIZE = 8
CONFIG = LayerQuantConfig(weight_bits=3, activation_bits=4)


class Attending(nn.Module):
    """A convolution without bias, a norm, a product of activations, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2, bias=False)
        self.norm = nn.LayerNorm(16)
        self.query = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        tokens = self.norm(functional.silu(self.stem(x)).flatten(2).transpose(1, 2))
        mixed = (self.query(tokens) @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        scores: Tensor = 4 * self.head((tokens + mixed).mean(1))
        return scores


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Attending(), (3, SIZE, SIZE), name="attending")


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.randn(24, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")


@pytest.fixture(scope="module")
def start(captured: CapturedModel, images: Tensor) -> FittedParameters:
    ops = captured.graph.ops
    statistics = collect(captured.program, sorted({name for op in ops for name in op.inputs}), [images])
    weights = {}
    for op in ops:
        weight = captured.weight(op.name)
        if weight is not None:
            params = weight_params(weight, CONFIG)
            weights[op.name] = QuantizedWeight(fake_quantize(weight, params), params)
    activations = {
        operand_key(op, index): activation_params(statistics[name], CONFIG)
        for op in ops
        for index, name in enumerate(op.inputs)
    }
    return FittedParameters(weights, activations=activations)


def test_no_steps_change_nothing(captured: CapturedModel, images: Tensor, start: FittedParameters) -> None:
    found = distil(captured, start, images, DistillationSpec(steps=0))
    assert found.weights.keys() == start.weights.keys()
    for name, weight in found.weights.items():
        assert torch.equal(weight.weight, start.weights[name].weight)
        assert torch.equal(weight.params.scale, start.weights[name].params.scale)
        bias = captured.bias(name)
        assert weight.bias is not None
        assert torch.equal(weight.bias, torch.zeros_like(weight.bias) if bias is None else bias)
    assert found.norms.keys() == {"norm.weight", "norm.bias"}
    assert torch.equal(found.norms["norm.weight"], torch.ones(16))
    for key, params in found.activations.items():
        assert torch.equal(params.scale, start.activations[key].scale)


class _Quantized(torch.fx.Interpreter):
    """A second implementation of the quantized network: values replaced where the program reads them."""

    def __init__(self, captured: CapturedModel, fitted: FittedParameters) -> None:
        super().__init__(captured.program)
        self._ops, self._fitted = {op.node: op for op in captured.graph.ops}, fitted

    def run_node(self, n: torch.fx.Node) -> object:
        """Compute a node."""
        if n.op == "get_attr" and n.target in self._fitted.norms:
            return self._fitted.norms[str(n.target)]
        op = self._ops.get(n.name)
        if op is None:
            return super().run_node(n)
        args = list(self.fetch_args_kwargs_from_env(n)[0])
        for index in range(len(op.inputs)):
            args[index] = fake_quantize(args[index], self._fitted.activations[operand_key(op, index)])
        if op.weight_count:
            weight = self._fitted.weights[op.name]
            args[1:3] = weight.weight, weight.bias
        return n.target(*args)  # type: ignore[operator]


def _divergence(captured: CapturedModel, fitted: FittedParameters, images: Tensor) -> float:
    with torch.no_grad():
        logits = _Quantized(captured, fitted).run(images)
    target = captured(images).log_softmax(1)
    return float(functional.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean"))


def test_answers_come_nearer_and_codes_stay_codes(
    captured: CapturedModel, images: Tensor, start: FittedParameters
) -> None:
    """Also on images that were not learned from; the same bits come every time."""
    settings = DistillationSpec(steps=80, code_rate=0.02, scale_rate=0.004, bias_rate=0.004)
    first, second = (distil(captured, start, images[:16], settings) for _ in range(2))
    unchanged = distil(captured, start, images[:16], DistillationSpec(steps=0))
    for seen in (images[:16], images[16:]):
        assert _divergence(captured, first, seen) < 0.8 * _divergence(captured, unchanged, seen)
    for name, weight in first.weights.items():
        assert torch.equal(weight.weight, second.weights[name].weight)
        assert torch.equal(dequantize(quantize(weight.weight, weight.params), weight.params), weight.weight)
        assert not torch.equal(weight.weight, start.weights[name].weight)
        assert weight.steps == ("nearest", "distilled")
