"""A hand-made graph of a small hybrid: stem, inverted residual, bridge, two transformer blocks, head."""

from __future__ import annotations

import pytest

from evoquant.types import ConvGeometry, Group, ModelGraph, Node, Op, OpKind, Role

CHANNELS = 48


def make_op(name, kind, role, block, block_kind, weight_shape, group=None):
    is_conv, is_matmul = kind is OpKind.CONV, kind is OpKind.MATMUL
    count = 0 if is_matmul else weight_shape[0] * weight_shape[1] * (9 if is_conv and len(weight_shape) == 4 else 1)
    geometry = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1) if is_conv else None
    return Op(
        name=name,
        kind=kind,
        role=role,
        block=block,
        block_kind=block_kind,
        group=group or name,
        node=name,
        inputs=("image", "image") if is_matmul else ("image",),
        input_shape=(1, weight_shape[1], 8, 8),
        weight_shape=weight_shape,
        output_shape=(1, weight_shape[0], 8, 8),
        geometry=geometry,
        gemm=(1, 64, weight_shape[0], weight_shape[1]),
        macs=64 * max(count, 64),
        weight_count=count,
        has_bias=not is_matmul,
        producers=(),
        consumers=(),
    )


def transformer(index):
    block = f"blocks.{index}"
    c = CHANNELS

    def linear(name, role, shape, group=None):
        return make_op(f"{block}.{name}", OpKind.LINEAR, role, block, "transformer", shape, group)

    qkv = f"{block}.attn.qkv"
    return [
        linear("attn.q", Role.ATTENTION_QKV, (c, c), qkv),
        linear("attn.k", Role.ATTENTION_QKV, (c, c), qkv),
        linear("attn.v", Role.ATTENTION_QKV, (c, c), qkv),
        make_op(f"{block}.attn.qk", OpKind.MATMUL, Role.ATTENTION_QK, block, "transformer", (4, 12, 64)),
        make_op(f"{block}.attn.av", OpKind.MATMUL, Role.ATTENTION_AV, block, "transformer", (4, 64, 12)),
        linear("attn.proj", Role.ATTENTION_OUT, (c, c)),
        linear("mlp.fc1", Role.MLP_IN, (4 * c, c)),
        linear("mlp.fc2", Role.MLP_OUT, (c, 4 * c)),
    ]


def hybrid_graph():
    c = CHANNELS
    ops = [
        make_op("stem", OpKind.CONV, Role.STEM, "stem", "stem", (16, 3, 3, 3)),
        make_op("local.expand", OpKind.CONV, Role.POINTWISE, "local", "inverted_residual", (c, 16, 1, 1)),
        make_op("local.depthwise", OpKind.CONV, Role.DEPTHWISE, "local", "inverted_residual", (c, 1, 3, 3)),
        make_op("bridge.in", OpKind.CONV, Role.BRIDGE, "bridge", "mobilevit", (c, c, 3, 3)),
        *transformer(0),
        *transformer(1),
        make_op("head", OpKind.LINEAR, Role.HEAD, "head", "head", (10, c)),
    ]
    members: dict[str, list[str]] = {}
    for op in ops:
        members.setdefault(op.group, []).append(op.name)
    return ModelGraph(
        model="hybrid",
        input_shape=(1, 3, 32, 32),
        nodes=(Node("image", "input", (), (1, 3, 32, 32), is_view=False, module=""),),
        ops=tuple(ops),
        groups=tuple(Group(name, tuple(names)) for name, names in members.items()),
        output="head",
        parameters=sum(op.weight_count for op in ops),
    )


@pytest.fixture(scope="session")
def graph():
    return hybrid_graph()
