"""Relative rows of attentions: the same results, a greatest weight of 1, and one kernel still."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evoquant.calibrate.relative_rows import softmax_products, with_relative_rows
from evoquant.graph import CapturedModel, capture
from evoquant.hardware.attention import fused_attentions

TOKENS, WIDTH, HEADS = 9, 24, 3


class Attention(nn.Module):
    """Patches, one attention, and a head; scores may have a bias, and the softmax another axis."""

    def __init__(self, *, biased: bool = False, axis: int = -1) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Linear(WIDTH, 3 * WIDTH)
        self.proj, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS)) if biased else None
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(x.shape[0], TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (3 * q) @ k.transpose(-2, -1)
        weights = (scores if self.bias is None else scores + self.bias).softmax(self.axis)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape[0], TOKENS, WIDTH)
        result: Tensor = self.head((x + self.proj(mixed)).mean(1))
        return result


def _captured(**options: bool | int) -> CapturedModel:
    torch.manual_seed(0)
    return capture(Attention(**options), (3, 12, 12), name="attention")  # type: ignore[arg-type]


def _images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class _Value(torch.fx.Interpreter):
    """The value of one node."""

    def __init__(self, captured: CapturedModel, name: str) -> None:
        super().__init__(captured.program)
        self._name = name
        self.found = torch.empty(0)

    def run_node(self, n: torch.fx.Node) -> object:
        """Keep it."""
        value = super().run_node(n)
        if n.name == self._name:
            self.found = value
        return value


@pytest.mark.parametrize("biased", [False, True])
def test_results_stay_and_every_row_reaches_one(biased: bool) -> None:
    captured = _captured(biased=biased)
    (name,) = softmax_products(captured)
    changed = with_relative_rows(captured, [name])

    torch.testing.assert_close(changed(_images()), captured(_images()), rtol=1e-5, atol=1e-6)
    operand = _Value(changed, changed.graph.op[name].inputs[0])
    operand.run(_images())
    assert torch.equal(operand.found.amax(-1), torch.ones(4, HEADS, TOKENS))
    assert [node.name for node in changed.program.graph.nodes if node.name in changed.graph.node] == [
        node.name for node in changed.graph.nodes
    ]
    program = {node.name: node for node in changed.program.graph.nodes}
    for node in changed.graph.nodes:
        if node != captured.graph.node.get(node.name):
            assert node.inputs == tuple(source.name for source in program[node.name].all_input_nodes)
    assert len(softmax_products(captured)) == 1
    assert softmax_products(changed) == []


def test_the_attention_is_one_kernel_as_before() -> None:
    captured = _captured()
    (plain,) = fused_attentions(captured.graph)
    (relative,) = fused_attentions(with_relative_rows(captured, softmax_products(captured)).graph)
    assert (plain.result, plain.between) == (plain.weighted, (plain.softmax,))
    assert (relative.scores, relative.softmax, relative.weighted) == (plain.scores, plain.softmax, plain.weighted)
    assert relative.result == f"{plain.weighted}_result"
    assert len(relative.between) == 4


def test_a_softmax_over_another_axis_has_no_rows() -> None:
    assert softmax_products(_captured(axis=-2)) == []
