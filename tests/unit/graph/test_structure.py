"""Roles, blocks, shapes and costs of hand-made models, written down by hand."""

import torch
from torch import nn

from evoquant.graph import published_macs
from evoquant.types import OpKind, Role


def roles(graph):
    return {op.name: op.role.value for op in graph.ops}


def test_roles_of_a_cnn_with_residual_and_gate(convnet):
    assert roles(convnet[1].graph) == {
        "entry.0": "stem",
        "body.0.first.0": "conv",
        "body.0.second.0": "conv",
        "body.1.expand.0": "pointwise",
        "body.1.spatial.0": "depthwise",
        "body.1.gate.squeeze": "gate",
        "body.1.gate.excite": "gate",
        "body.1.project.0": "pointwise",
        "classifier": "head",
    }


def test_blocks_of_a_cnn(convnet):
    found = {op.name: (op.block, op.block_kind) for op in convnet[1].graph.ops}
    assert found["entry.0"] == ("entry", "stem")
    assert found["body.0.second.0"] == ("body.0", "residual")
    assert found["body.1.gate.excite"] == ("body.1", "inverted_residual")
    assert found["classifier"] == ("classifier", "head")


def test_roles_of_a_transformer(tiny_vit):
    one = {
        "mixer.q": "attention_qkv",
        "mixer.k": "attention_qkv",
        "mixer.v": "attention_qkv",
        "mixer.qk": "attention_qk",
        "mixer.av": "attention_av",
        "mixer.out": "attention_out",
        "up": "mlp_in",
        "down": "mlp_out",
    }
    layers = {f"layers.{index}.{name}": role for index in (0, 1) for name, role in one.items()}
    assert roles(tiny_vit[1].graph) == {"patches": "stem", **layers, "last": "head"}
    assert {op.block for op in tiny_vit[1].graph.ops if op.block_kind == "transformer"} == {"layers.0", "layers.1"}


def test_bridges_of_a_hybrid(hybrid):
    graph = hybrid[1].graph
    bridges = [op.name for op in graph.ops if op.role is Role.BRIDGE]
    assert bridges == ["body.1.near.0", "body.1.widen", "body.1.narrow.0", "body.1.join.0"]
    assert {(graph.op[name].block, graph.op[name].block_kind) for name in bridges} == {("body.1", "mobilevit")}
    assert graph.op["body.1.far.mixer.qk"].block == "body.1.far"
    assert graph.op["body.2.expand.0"].role is Role.POINTWISE


class LinearAttention(nn.Module):
    """q·(k·v) without softmax, 1x1 convolutions as projections."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv, self.out = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = self.entry(x)
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        context = v @ torch.relu(k).transpose(1, 2)
        mixed = (context @ torch.relu(q)).reshape(x.shape)
        return self.last((x + self.out(mixed)).mean((2, 3)))


class SeparableAttention(nn.Module):
    """Context scores by softmax, no matmul at all; the MLP is of 1x1 convolutions."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv, self.out = nn.Conv2d(8, 17, 1), nn.Conv2d(8, 8, 1)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = self.entry(x)
        q, k, v = self.qkv(x).flatten(2).split([1, 8, 8], 1)
        context = (k * q.softmax(-1)).sum(-1, keepdim=True)
        x = x + self.out((torch.relu(v) * context).reshape(x.shape))
        x = x + self.down(nn.functional.silu(self.up(x)))
        return self.last(x.mean((2, 3)))


def test_linear_attention_is_attention(capture_small):
    assert roles(capture_small(LinearAttention()).graph) == {
        "entry": "stem",
        "qkv": "attention_qkv",
        "qk": "attention_qk",
        "av": "attention_av",
        "out": "attention_out",
        "last": "head",
    }


def test_separable_attention_is_attention(capture_small):
    assert roles(capture_small(SeparableAttention()).graph) == {
        "entry": "stem",
        "qkv": "attention_qkv",
        "out": "attention_out",
        "up": "mlp_in",
        "down": "mlp_out",
        "last": "head",
    }


class TalkingHeads(nn.Module):
    """Layers that mix the scores of the heads, before and after the softmax."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 2, 2)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.early, self.late = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        tokens = self.entry(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(x.shape[0], 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.early((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        scores = self.late(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (tokens + self.out((scores @ v).transpose(1, 2).reshape(tokens.shape))).flatten(1)


def test_talking_heads_belong_to_the_scores(capture_small):
    assert roles(capture_small(TalkingHeads()).graph) == {
        "entry": "stem",
        "qkv": "attention_qkv",
        "qk": "attention_qk",
        "early": "attention_qk",
        "late": "attention_qk",
        "av": "attention_av",
        "out": "attention_out",
    }


class Products(nn.Module):
    """einsum, addmm, a product with a parameter, a one-dimensional convolution, and nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.along = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.shift = nn.Parameter(torch.randn(4))
        self.last = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        tokens = self.entry(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        scores = torch.einsum("bic,bjc->bij", tokens, tokens).softmax(-1)
        tokens = torch.einsum("bij,bjc->bic", scores, tokens)
        tokens = tokens + self.along(tokens.transpose(1, 2)).transpose(1, 2)
        return torch.addmm(self.shift, (tokens @ self.matrix).mean(1), self.last)


def test_every_spelling_of_a_product_is_found(capture_small):
    torch.manual_seed(0)
    model = Products().eval()
    captured = capture_small(model)
    kinds = [(op.kind, op.macs) for op in captured.graph.ops]
    assert kinds == [
        (OpKind.CONV, 16 * 8 * 12),
        (OpKind.LINEAR, 16 * 24 * 8),
        (OpKind.MATMUL, 2 * 16 * 16 * 4),
        (OpKind.MATMUL, 2 * 16 * 4 * 16),
        (OpKind.LINEAR, 16 * 8 * 8),
        (OpKind.MATMUL, 16 * 16 * 8),
        (OpKind.MATMUL, 16 * 8 * 16),
        (OpKind.CONV, 16 * 8 * 3),
        (OpKind.LINEAR, 16 * 6 * 8),
        (OpKind.LINEAR, 4 * 6),
    ]
    assert captured.graph.op["attention.in_proj"].role is Role.ATTENTION_QKV
    assert captured.graph.op["attention.out_proj"].role is Role.ATTENTION_OUT
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(captured(images), model(images), rtol=1e-4, atol=1e-5)


def test_shapes_geometry_and_costs(convnet, tiny_vit):
    stem = convnet[1].graph.op["entry.0"]
    assert (stem.input_shape, stem.weight_shape, stem.output_shape) == ((1, 3, 16, 16), (8, 3, 3, 3), (1, 8, 8, 8))
    assert stem.gemm == (1, 64, 8, 27)
    assert (stem.macs, stem.weight_count, stem.has_bias) == (64 * 8 * 27, 216, True)
    assert (stem.geometry.kernel, stem.geometry.stride, stem.geometry.padding) == ((3, 3), (2, 2), (1, 1))
    depthwise = convnet[1].graph.op["body.1.spatial.0"]
    assert depthwise.gemm == (16, 64, 1, 9)
    assert depthwise.geometry.groups == 16
    scores, mixed = (tiny_vit[1].graph.op[f"layers.0.mixer.{name}"] for name in ("qk", "av"))
    assert (scores.gemm, mixed.gemm) == ((2, 5, 5, 6), (2, 5, 6, 5))
    assert (scores.geometry, scores.weight_count, len(scores.inputs)) == (None, 0, 2)
    assert tiny_vit[1].graph.op["layers.0.up"].gemm == (1, 5, 24, 12)


def test_producers_and_consumers(tiny_vit, convnet):
    op = tiny_vit[1].graph.op
    assert op["layers.0.mixer.qk"].producers == ("layers.0.mixer.q", "layers.0.mixer.k")
    assert op["layers.0.mixer.av"].producers == ("layers.0.mixer.v", "layers.0.mixer.qk")
    assert op["layers.0.mixer.av"].consumers == ("layers.0.mixer.out",)
    assert op["last"].producers == (
        "patches",
        *(f"layers.{index}.{name}" for index in (0, 1) for name in ("mixer.out", "down")),
    )
    assert convnet[1].graph.op["body.1.gate.excite"].consumers == ("body.1.project.0",)
    for graph in (tiny_vit[1].graph, convnet[1].graph):
        for each in graph.ops:
            assert all(each.name in graph.op[other].consumers for other in each.producers)


def test_tensors_are_complete_and_in_order(hybrid):
    graph = hybrid[1].graph
    seen = set()
    for node in graph.nodes:
        assert set(node.inputs) <= seen
        seen.add(node.name)
    assert graph.nodes[0].kind == "input"
    assert graph.node[graph.output].shape == (1, 5)
    assert graph.input_shape == (1, 3, 16, 16)
    views = {node.kind for node in graph.nodes if node.is_view}
    assert "transpose" in views
    assert not views & {"conv2d", "linear", "matmul", "softmax", "add", "relu"}


def test_counts(convnet):
    model, captured = convnet
    assert captured.graph.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert captured.graph.macs == sum(op.macs for op in captured.graph.ops)
    values = 64 * (8 + 8 + 8 + 16 + 16 + 8)
    assert published_macs(captured.graph, captured.batch_norms) == captured.graph.macs + 2 * values
