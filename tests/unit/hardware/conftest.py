import pytest

from evoquant.types import ConvGeometry, Group, ModelGraph, Node, Op, OpKind, Role


class GraphBuilder:
    """Makes small graphs by hand: each call adds a node and gives its name."""

    def __init__(self, shape=(1, 3, 32, 32)):
        self.nodes = [Node("image", "input", (), shape, False, "")]
        self.ops = []

    def shape(self, name):
        return next(node.shape for node in self.nodes if node.name == name)

    def node(self, kind, inputs, shape=None, is_view=False):
        name = f"{kind}_{len(self.nodes)}"
        inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        self.nodes.append(Node(name, kind, inputs, shape or self.shape(inputs[0]), is_view, ""))
        return name

    def _op(self, name, kind, role, inputs, weight_shape, output, gemm, weights, geometry=None, bias=True):
        node = self.node(str(kind), inputs, output)
        inputs = self.nodes[-1].inputs
        batch, m, n, k = gemm
        self.ops.append(
            Op(name, kind, role, "block", "block", name, node, inputs, self.shape(inputs[0]), weight_shape, output,
               geometry, gemm, batch * m * n * k, weights, bias, (), ())
        )  # fmt: skip
        return node

    def conv(self, name, source, channels, kernel=1, stride=1, groups=1, role=Role.CONV):
        _, in_channels, height, width = self.shape(source)
        out = (1, channels, -(-height // stride), -(-width // stride))
        weight = (channels, in_channels // groups, kernel, kernel)
        gemm = (groups, out[2] * out[3], channels // groups, in_channels // groups * kernel * kernel)
        pad = kernel // 2
        geometry = ConvGeometry((kernel, kernel), (stride, stride), (pad, pad), (1, 1), groups)
        count = channels * in_channels // groups * kernel * kernel
        return self._op(name, OpKind.CONV, role, source, weight, out, gemm, count, geometry)

    def linear(self, name, source, features, role=Role.MLP_IN):
        *lead, last = self.shape(source)
        rows = 1
        for size in lead:
            rows *= size
        return self._op(
            name, OpKind.LINEAR, role, source, (features, last), (*lead, features), (1, rows, features, last),
            features * last,
        )  # fmt: skip

    def matmul(self, name, first, second, role=Role.ATTENTION_QK):
        *heads, rows, inner = self.shape(first)
        columns = self.shape(second)[-1]
        batch = 1
        for size in heads:
            batch *= size
        out = (*heads, rows, columns)
        return self._op(
            name, OpKind.MATMUL, role, (first, second), self.shape(second), out, (batch, rows, columns, inner), 0,
            bias=False,
        )  # fmt: skip

    def build(self, extra_parameters=100):
        groups = tuple(Group(op.name, (op.name,)) for op in self.ops)
        parameters = sum(op.weight_count for op in self.ops) + extra_parameters
        return ModelGraph(
            "hand_made",
            self.nodes[0].shape,
            tuple(self.nodes),
            tuple(self.ops),
            groups,
            self.nodes[-1].name,
            parameters,
        )


def hybrid_graph(size=32, width=16, blocks=2):
    """A stem, inverted residuals, one attention with MLP, a head: every kind of operation and role class."""
    b = GraphBuilder((1, 3, size, size))
    x = b.node("silu", b.conv("stem", "image", width, 3, 2, role=Role.STEM))
    for index in range(blocks):
        y = b.node("silu", b.conv(f"blocks.{index}.expand", x, 2 * width, role=Role.POINTWISE))
        y = b.node("silu", b.conv(f"blocks.{index}.dw", y, 2 * width, 3, groups=2 * width, role=Role.DEPTHWISE))
        x = b.node("add", (b.conv(f"blocks.{index}.project", y, width, role=Role.POINTWISE), x))
    side = b.shape(x)[2]
    tokens = b.node("permute", x, (1, side * side, width), is_view=True)
    y = b.node("layer_norm", tokens)
    q, k, v = (b.linear(f"attn.{part}", y, width, Role.ATTENTION_QKV) for part in "qkv")
    heads = [b.node("view", part, (1, 2, side * side, width // 2), is_view=True) for part in (q, k, v)]
    keys = b.node("permute", heads[1], (1, 2, width // 2, side * side), is_view=True)
    weights = b.node("softmax", b.matmul("attn.qk", heads[0], keys))
    mixed = b.matmul("attn.av", weights, heads[2], Role.ATTENTION_AV)
    mixed = b.node("view", mixed, (1, side * side, width), is_view=True)
    x = b.node("add", (b.linear("attn.out", mixed, width, Role.ATTENTION_OUT), tokens))
    y = b.node("gelu", b.linear("mlp.fc1", b.node("layer_norm", x), 2 * width))
    x = b.node("add", (b.linear("mlp.fc2", y, width, Role.MLP_OUT), x))
    b.linear("head", b.node("mean", x, (1, width)), 10, Role.HEAD)
    return b.build()


@pytest.fixture(scope="session")
def builder():
    return GraphBuilder


@pytest.fixture(scope="session")
def hybrid():
    return hybrid_graph()


@pytest.fixture(scope="session")
def make_hybrid():
    return hybrid_graph
