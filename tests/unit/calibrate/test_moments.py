"""Moments and output errors against direct computation on tiny programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoquant.calibrate.moments import HELD_OUT_EVERY, SplitMoments, collect_moments, input_vectors, rows_of
from evoquant.calibrate.output_error import ErrorAccumulator, OutputError
from evoquant.errors import DataError
from evoquant.graph import CapturedModel, capture

SIZE = 9


class Convolutions(nn.Module):
    """A strided, a grouped, a depthwise and a pointwise convolution, and a linear layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
        self.pointwise = nn.Conv2d(12, 6, 1, stride=2, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = functional.relu(self.grouped(functional.relu(self.stem(x))))
        features: Tensor = self.pointwise(functional.relu(self.depthwise(x))).mean((2, 3))
        scores: Tensor = self.head(features)
        return scores


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Convolutions(), (3, SIZE, SIZE), name="convolutions")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) + 0.3


@pytest.fixture(scope="module")
def moments(captured: CapturedModel, images: Tensor) -> dict[str, SplitMoments]:
    return dict(collect_moments(captured.program, captured.graph, torch.split(images, 3)))


def _value_of(captured: CapturedModel, name: str, images: Tensor) -> Tensor:
    seen: dict[str, Tensor] = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Tensor:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Keeping(captured.program).run(images)
    return seen[name]


def _is_held_out(images: Tensor) -> Tensor:
    return (torch.arange(len(images)) + 1) % HELD_OUT_EVERY == 0


def test_input_vectors_times_rows_are_the_outputs(captured: CapturedModel, images: Tensor) -> None:
    """The definition: what a row of the weight is multiplied with."""
    for op in captured.graph.ops:
        inputs = _value_of(captured, op.inputs[0], images)
        weight, bias = captured.weight(op.name), captured.bias(op.name)
        assert weight is not None
        vectors = torch.cat(list(input_vectors(inputs, op)), dim=1)
        products = vectors @ rows_of(weight, op).transpose(1, 2)
        expected = _value_of(captured, op.node, images)
        if bias is not None:
            expected = expected - (bias if expected.ndim == 2 else bias[:, None, None])
        flat = expected.flatten(2) if expected.ndim == 4 else expected[:, :, None]
        grouped = products.reshape(len(vectors), len(images), -1, products.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)
        torch.testing.assert_close(grouped, flat, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_each_part(
    captured: CapturedModel, images: Tensor, moments: dict[str, SplitMoments]
) -> None:
    """Means of the vectors and of their products, whatever the batches; neither part sees the other."""
    for op in captured.graph.ops:
        inputs = _value_of(captured, op.inputs[0], images)
        for part, mask in (("fitted", ~_is_held_out(images)), ("held_out", _is_held_out(images))):
            vectors = torch.cat(list(input_vectors(inputs[mask], op)), dim=1).double()
            found = getattr(moments[op.name], part)
            assert found.rows == vectors.shape[1]
            second = vectors.transpose(1, 2) @ vectors / found.rows
            torch.testing.assert_close(found.mean.double(), vectors.mean(1), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.second.double(), second, rtol=1e-4, atol=1e-6)


def test_large_images_are_looked_at_sparsely() -> None:
    """At most 1024 of the 128 x 128 output pixels, and the inputs still belong to the outputs."""
    torch.manual_seed(0)
    captured = capture(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), (2, 128, 128), name="large")
    image = torch.randn(2, 2, 128, 128)
    op = captured.graph.ops[0]
    weight, bias = captured.weight(op.name), captured.bias(op.name)
    assert weight is not None
    assert bias is not None
    (vectors,) = input_vectors(image, op)
    assert vectors.shape == (1, 2 * 32 * 32, 18)
    accumulator = ErrorAccumulator(op)
    with torch.no_grad():
        accumulator.update(image, captured(image))
    error = accumulator.finish()
    residual = error.of(rows_of(weight, op), bias[None])
    torch.testing.assert_close(residual, torch.zeros(1, 3), rtol=0, atol=1e-5)


def test_output_error_is_the_mean_square(captured: CapturedModel, images: Tensor) -> None:
    """With a residual, and with changes of weight and bias, against the outputs themselves."""
    op = captured.graph.op["grouped"]
    generator = torch.Generator().manual_seed(2)
    inputs = _value_of(captured, op.inputs[0], images)
    weight, bias = captured.weight(op.name), captured.bias(op.name)
    assert weight is not None
    assert bias is not None
    residual = torch.randn(_value_of(captured, op.node, images).shape, generator=generator)
    change = 0.1 * torch.randn(weight.shape, generator=generator)
    bias_change = 0.1 * torch.randn(bias.shape, generator=generator)
    accumulator = ErrorAccumulator(op)
    accumulator.update(inputs[:5], residual[:5])
    accumulator.update(inputs[5:], residual[5:])
    error = accumulator.finish()
    left = residual - functional.conv2d(inputs, change, bias_change, padding=1, groups=4)
    expected = left.square().mean((0, 2, 3))
    torch.testing.assert_close(error.of(rows_of(change, op), bias_change.reshape(4, 3)).flatten(), expected)
    torch.testing.assert_close(
        error.best_bias(rows_of(change, op)).flatten(), left.mean((0, 2, 3)) + bias_change, rtol=1e-4, atol=1e-5
    )


def test_ridge_is_zero_without_residual_and_lessens_the_training_error(moments: dict[str, SplitMoments]) -> None:
    """Zero where inputs are not quantized, zero for an infinite penalty, never worse on what it was fitted to."""
    inputs = moments["stem"].fitted
    generator = torch.Generator().manual_seed(3)
    assert not OutputError(inputs).best_change(0.01).any()
    width = inputs.mean.shape[1]
    zeros = torch.zeros(1, 8, width), torch.zeros(1, 8), torch.zeros(1, 8)
    assert not OutputError(inputs, *zeros).best_change(0.01).any()
    truth = torch.randn(1, 8, width, generator=generator)
    power = torch.einsum("grw,grw->gr", truth @ inputs.second, truth)
    error = OutputError(inputs, truth @ inputs.second, torch.einsum("grw,gw->gr", truth, inputs.mean), power)
    torch.testing.assert_close(error.best_change(1e-7), truth, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(error.best_change(1e12), torch.zeros_like(truth), rtol=0, atol=1e-6)
    nothing = torch.zeros_like(truth)
    before = error.of(nothing, error.best_bias(nothing))
    for ridge in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        change = error.best_change(ridge)
        assert bool((error.of(change, error.best_bias(change)) <= before * (1 + 1e-6)).all())


def test_too_few_images(captured: CapturedModel, images: Tensor) -> None:
    """No image would be held out."""
    with pytest.raises(DataError, match="at least 4 calibration images, but got 3"):
        collect_moments(captured.program, captured.graph, [images[:3]])
