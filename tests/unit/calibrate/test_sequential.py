"""Fitting a whole plan, and learning the rounding of its blocks, on a small residual network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoquant.calibrate import activation_params, collect
from evoquant.calibrate.block_run import BlockRun
from evoquant.calibrate.compensate import SplitError, compensate
from evoquant.calibrate.moments import collect_moments
from evoquant.calibrate.segment import Segment, narrow_places
from evoquant.calibrate.sequential import MakeQuantizer, fit_sequentially
from evoquant.config.quantizers import CompensationSpec, RoundingSpec
from evoquant.errors import DataError
from evoquant.graph import CapturedModel, capture
from evoquant.graph.constants import attribute
from evoquant.quant import FakeQuant, fake_quantize, weight_params
from evoquant.space import canonical, uniform_plan
from evoquant.types import FLOAT_BITS, LayerQuantConfig, Op, QuantizationScheme

SIZE = 8
PLAIN = CompensationSpec(weight_compensation="none", bias_correction=False, ridges=())


class Residual(nn.Module):
    """Two residual blocks, the second with a matmul of activations, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1, bias=False)
        self.query = nn.Linear(16, 16)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = functional.relu(self.stem(x))
        x = x + self.project(functional.relu(self.depthwise(x)))
        tokens = x.flatten(2).transpose(1, 2)
        mixed = (self.query(tokens) @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        tokens = tokens + self.out(functional.gelu(mixed))
        scores: Tensor = self.head(tokens.mean(1))
        return scores


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Residual(), (3, SIZE, SIZE), name="residual")


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(24, 3, 2, 2, generator=generator)
    images = functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return list(torch.split(images + 0.2 * torch.randn(images.shape, generator=generator), 10))


@pytest.fixture(scope="module")
def quantizer(captured: CapturedModel, batches: list[Tensor]) -> MakeQuantizer:
    names = sorted({name for op in captured.graph.ops for name in op.inputs})
    statistics = collect(captured.program, names, batches)

    def make(op: Op, index: int, config: LayerQuantConfig) -> Callable[[Tensor], Tensor] | None:
        if config.activation_bits == FLOAT_BITS:
            return None
        return FakeQuant(activation_params(statistics[op.inputs[index]], config))

    return make


def _plan(captured: CapturedModel, weight_bits: int, activation_bits: int) -> dict[str, LayerQuantConfig]:
    return uniform_plan(captured.graph, weight_bits, activation_bits, edge_bits=0)


def test_narrow_places_are_the_ends_of_blocks(captured: CapturedModel) -> None:
    """Inside a residual block two tensors are alive; behind its sum one is."""
    kinds = {name: captured.graph.node[name].kind for name in narrow_places(captured)}
    order = [node.name for node in captured.graph.nodes if node.name in kinds]
    assert [kinds[name] for name in order if kinds[name] in ("input", "conv2d", "add", "linear", "relu")] == [
        "input", "conv2d", "relu", "add", "add", "linear",
    ]  # fmt: skip
    inside = {captured.graph.op[name].node for name in ("depthwise", "project", "query", "out")}
    assert not inside & set(kinds)


def test_float_inputs_and_plain_rounding_give_the_plain_weights(
    captured: CapturedModel, batches: list[Tensor], quantizer: MakeQuantizer
) -> None:
    """Nothing is asked for, so nothing happens; weights of 32 bits are left out."""
    plan = {**_plan(captured, 4, FLOAT_BITS), "head": LayerQuantConfig(weight_bits=32, activation_bits=32)}
    found = fit_sequentially(captured, plan, batches, quantizer, PLAIN)
    assert set(found) == {"stem", "depthwise", "project", "query", "out"}
    for name, stored in found.items():
        weight = captured.weight(name)
        assert weight is not None
        torch.testing.assert_close(stored.weight, fake_quantize(weight, weight_params(weight, plan[name])))
        assert stored.bias is None
        assert stored.steps == ("nearest",)


def test_first_layer_agrees_with_the_moments_alone(
    captured: CapturedModel, batches: list[Tensor], quantizer: MakeQuantizer
) -> None:
    """Its inputs are the images in both runs, so a second implementation must find the same weight and bias."""
    plan, settings = _plan(captured, 3, FLOAT_BITS), CompensationSpec()
    found = fit_sequentially(captured, plan, batches, quantizer, settings)["stem"]
    op, weight = captured.graph.op["stem"], captured.weight("stem")
    assert weight is not None
    moments = collect_moments(captured.program, captured.graph, batches)["stem"]
    make_params = partial(weight_params, config=plan["stem"])
    error = SplitError.of_float_inputs(moments)
    expected = compensate(op, weight, captured.bias("stem"), make_params, error, settings)
    assert found.steps == expected.steps
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=1e-4)


def _output_error(
    captured: CapturedModel, batches: list[Tensor], plan: dict[str, LayerQuantConfig], quantizer: MakeQuantizer,
    settings: CompensationSpec, rounding: RoundingSpec | None = None,
) -> float:  # fmt: skip
    """Mean square error of the scores with weights fitted to the images and activations quantized."""
    weights = fit_sequentially(captured, plan, batches, quantizer, settings, rounding=rounding)
    model = captured.clone()
    for name, stored in weights.items():
        model.set_weight(name, stored.weight)
        if stored.bias is not None:
            model.set_bias(name, stored.bias)
    images = torch.cat(batches)
    with torch.inference_mode():
        return float((_Quantizing(model, plan, quantizer).run(images) - captured.program(images)).square().mean())


class _Quantizing(torch.fx.Interpreter):
    """Runs a program with the operands of its operations quantized."""

    def __init__(self, model: CapturedModel, plan: dict[str, LayerQuantConfig], quantizer: MakeQuantizer) -> None:
        super().__init__(model.program)
        self._quantizers = {
            op.node: [quantizer(op, index, plan[op.name]) for index in range(len(op.inputs))] for op in model.graph.ops
        }

    def run_node(self, n: torch.fx.Node) -> Any:
        """Compute a node."""
        if n.name not in self._quantizers:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        quantizers = self._quantizers[n.name]
        operands = [x if quantizer is None else quantizer(x) for x, quantizer in zip(args, quantizers, strict=False)]
        target: Any = n.target
        return target(*operands, *args[len(quantizers) :])


def test_each_step_lessens_the_output_error(
    captured: CapturedModel, batches: list[Tensor], quantizer: MakeQuantizer
) -> None:
    """The whole network's error falls by a lot with bias, compensation and ridge, and by learning alone."""
    plan = _plan(captured, 3, 5)
    error = partial(_output_error, captured, batches, plan, quantizer)
    plain = error(PLAIN)
    assert error(CompensationSpec()) < 0.5 * plain
    assert error(PLAIN, RoundingSpec(iterations=60)) < 0.5 * plain


@pytest.mark.parametrize(("weight_bits", "scheme"), [(3, QuantizationScheme.UNIFORM), (4, QuantizationScheme.NORMAL)])
def test_learning_repeats_and_stays_on_the_grid(
    captured: CapturedModel,
    batches: list[Tensor],
    quantizer: MakeQuantizer,
    weight_bits: int,
    scheme: QuantizationScheme,
) -> None:
    """The same bits every time; codes stay codes; at least one block keeps what it learned."""
    plan = {
        op.name: canonical(op, replace(config, weight_scheme=scheme))
        for op, config in zip(captured.graph.ops, _plan(captured, weight_bits, 5).values(), strict=True)
    }
    first, second = (
        fit_sequentially(captured, plan, batches, quantizer, CompensationSpec(), rounding=RoundingSpec(iterations=30))
        for _ in range(2)
    )
    assert any("learned" in stored.steps for stored in first.values())
    for name, stored in first.items():
        assert torch.equal(stored.weight, second[name].weight)
        torch.testing.assert_close(fake_quantize(stored.weight, stored.params), stored.weight, rtol=1e-5, atol=1e-7)


def test_too_few_images(captured: CapturedModel, quantizer: MakeQuantizer) -> None:
    """No image would be held out."""
    with pytest.raises(DataError, match="at least 4 calibration images, but got 2"):
        fit_sequentially(captured, _plan(captured, 4, 8), [torch.zeros(2, 3, SIZE, SIZE)], quantizer, PLAIN)


def test_activations_are_left_float_at_random_only_while_asked_for(
    captured: CapturedModel, batches: list[Tensor], quantizer: MakeQuantizer
) -> None:
    """All of them give the floating-point block, none the quantized one, and the share in between lies between."""
    plan = _plan(captured, FLOAT_BITS, 4)
    nodes = [n for n in captured.program.graph.nodes if n.op == "call_function"]
    source = next(n for n in captured.program.graph.nodes if n.op == "placeholder")
    ops = {op.node: op for op in captured.graph.ops}
    segment = Segment(captured.program, tuple(nodes), source, ops)
    originals = {op.name: (captured.weight(op.name), captured.bias(op.name)) for op in ops.values() if op.weight_count}
    quantizers = {
        (op.name, index): quantizer(op, index, plan[op.name]) for op in ops.values() for index in range(len(op.inputs))
    }
    images = batches[0]
    known = {n: attribute(captured.program, n.target) for n in captured.program.graph.nodes if n.op == "get_attr"}
    run = BlockRun(segment, {}, originals, quantizers)
    exact, before = BlockRun(segment, {}, originals, {})(images, known), run(images, known)
    errors = []
    for share in (0.0, 0.5, 1.0):
        with run.dropping(share, torch.Generator().manual_seed(0)):
            errors.append(float((run(images, known) - exact).square().mean()))
    assert errors[2] == 0.0 < errors[1] < errors[0]
    assert torch.equal(run(images, known), before)
