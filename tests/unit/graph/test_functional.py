"""Writes in place, regions under another mode and forms of fused attention, each against the model itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evoquant.graph import capture, export
from evoquant.types import Role


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 2, 2)


class PlainWrite(Layer):
    def forward(self, x):
        x = self.layer(x)
        x += 1.0
        functional.relu_(x)
        return x.mean((2, 3))


class WriteThroughView(Layer):
    def forward(self, x):
        x = self.layer(x)
        half = x[:, :4]
        half.mul_(3.0)
        return x.mean((2, 3))


class WriteUnderView(Layer):
    def forward(self, x):
        x = self.layer(x)
        flat = x.flatten(2)
        x.relu_()
        return flat.mean(2)


class OtherMode(Layer):
    def forward(self, x):
        x = self.layer(x)
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            y = torch.exp(-x.float())
        return (x + y).mean((2, 3))


class Fused(Layer):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("keep", torch.arange(16)[:, None] % 5 >= torch.arange(16)[None] % 5)

    def forward(self, x):
        tokens = self.layer(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(x.shape[0], 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        options = {
            "plain": {},
            "scaled": {"scale": 0.3},
            "added": {"attn_mask": self.keep.float()},
            "boolean": {"attn_mask": self.keep},
            "causal": {"is_causal": True},
        }
        return functional.scaled_dot_product_attention(q, k, v, **options[self.form]).flatten(1)


MODELS = [PlainWrite(), WriteThroughView(), WriteUnderView(), OtherMode()]
FORMS = ["plain", "scaled", "added", "boolean", "causal"]


def assert_same(model, captured):
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(captured(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_program_is_functional_and_equal(model, capture_small):
    captured = capture_small(model)
    assert_same(model, captured)
    overloads = [node.target for node in captured.program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert not any(overload._schema.is_mutable for overload in overloads)


@pytest.mark.parametrize("form", FORMS)
def test_fused_attention_becomes_two_products(form, capture_small):
    torch.manual_seed(2)
    model = Fused(form).eval()
    captured = capture_small(model)
    assert_same(model, captured)
    assert [op.role for op in captured.graph.ops] == [
        Role.STEM,
        Role.ATTENTION_QKV,
        Role.ATTENTION_QK,
        Role.ATTENTION_AV,
    ]


def test_both_ways_to_a_functional_graph_agree(monkeypatch, tiny_vit):
    model, quick = tiny_vit
    monkeypatch.setattr(export, "make_functional", lambda _: False)
    slow = capture(model, (3, 8, 8), name="slow")

    def facts(captured):
        return [(op.name, op.role, op.block, op.group, op.gemm, op.producers) for op in captured.graph.ops]

    assert facts(slow) == facts(quick)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(slow(images), quick(images), rtol=1e-5, atol=1e-6)
