"""Factors in front of depthwise convolutions: exact, and only where nothing else can scale the channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evoquant.calibrate.channel_flow import trace_channels
from evoquant.calibrate.channel_ranges import channel_ranges, place
from evoquant.calibrate.input_scaling import even_factors, fixed_depthwise_inputs, scale_inputs
from evoquant.graph import CapturedModel, capture

SIZE = 12


class Separable(nn.Module):
    """A pointwise, an activation function, and a depthwise convolution with uneven channels."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.activation = nn.Conv2d(3, 8, 3, stride=2), activation
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.stem.weight *= torch.logspace(-2, 1, 8)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        scores: Tensor = self.head(self.depthwise(self.activation(self.stem(x))).mean((2, 3)))
        return scores


def _captured(activation: nn.Module) -> CapturedModel:
    torch.manual_seed(0)
    return capture(Separable(activation), (3, SIZE, SIZE), name="separable")


def _images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("activation", "names"), [(nn.SiLU(), ["depthwise"]), (nn.ReLU6(), ["depthwise"]), (nn.ReLU(), [])]
)
def test_only_inputs_that_their_source_cannot_scale(activation: nn.Module, names: list[str]) -> None:
    captured = _captured(activation)
    assert [reader.op for reader in fixed_depthwise_inputs(captured, trace_channels(captured))] == names


def test_the_output_stays_and_the_channels_become_alike() -> None:
    captured, images = _captured(nn.SiLU()), _images()
    readers = fixed_depthwise_inputs(captured, trace_channels(captured))
    before = channel_ranges(captured.program, readers, [images])[place(readers[0])].mean_square
    factors = {
        reader.op: even_factors(reader, channel_ranges(captured.program, readers, [images])) for reader in readers
    }

    changed = scale_inputs(captured, factors)

    torch.testing.assert_close(changed(images), captured(images), rtol=1e-5, atol=1e-5)
    op = changed.graph.op["depthwise"]
    node = changed.graph.node[op.inputs[0]]
    assert node.kind == "mul"
    assert changed.graph.node[op.node].inputs == op.inputs
    assert [other.name for other in changed.graph.nodes].index(node.name) < [
        other.name for other in changed.graph.nodes
    ].index(op.node)
    readers = fixed_depthwise_inputs(changed, trace_channels(changed))
    after = channel_ranges(changed.program, readers, [images])[place(readers[0])].mean_square
    assert float(after.max() / after.min()) < 0.1 * float(before.max() / before.min())


def test_the_model_itself_is_left_alone() -> None:
    captured, images = _captured(nn.SiLU()), _images()
    weight, expected = captured.weight("depthwise"), captured(images)
    scale_inputs(captured, {"depthwise": torch.full((8,), 2.0, dtype=torch.float64)})
    assert captured.weight("depthwise") is weight
    assert torch.equal(captured(images), expected)
