"""Small models, captured and calibrated on random images, and what packs them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evoquant.calibrate import collect
from evoquant.deploy import pack
from evoquant.evaluate import SimulatedModel
from evoquant.evaluate.operands import OperandCache
from evoquant.graph import capture
from evoquant.kernels import info
from evoquant.types import LayerQuantConfig, OpKind, QuantizationGranularity

IMAGE = (3, 12, 12)


class Block(nn.Module):
    """Attention on tokens, written as most models have it: one projection to q, k and v, split by ``unbind``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.before(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class Hybrid(nn.Module):
    """Every kind of product: dense, strided, grouped, depthwise and pointwise convolutions, linear, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, 1, 1, groups=4)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.point = nn.Conv2d(24, 16, 1, bias=False)
        self.block = Block(16, 2)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(nn.functional.silu(self.norm(self.stem(x))), 3, 1, 1)
        y = nn.functional.hardswish(self.depthwise(torch.relu(self.grouped(x))))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.point(y)
        tokens = self.block(x.flatten(2).transpose(1, 2))
        return self.head(tokens.mean(1))


class Prepared:
    """A captured model with its operands and images."""

    def __init__(self, model: nn.Module, image: tuple[int, ...] = IMAGE, count: int = 24, captured=None) -> None:
        generator = torch.Generator().manual_seed(11)
        self.model = model.eval()
        self.images = torch.randn(count, *image, generator=generator)
        self.captured = captured or capture(self.model, image, name=type(model).__name__)
        names = sorted({name for op in self.captured.graph.ops for name in op.inputs})
        statistics = collect(self.captured.program, names, iter([self.images]))
        self.operands = OperandCache(self.captured, statistics)
        self.simulation = SimulatedModel(self.captured, self.operands)

    def plan(self, **precision):
        """One precision for all operations that can have it; attention matmuls keep uniform codes of those bits."""
        return {op.name: self._config(op, precision) for op in self.captured.graph.ops}

    def _config(self, op, precision):
        if op.kind is not OpKind.MATMUL:
            return LayerQuantConfig(**precision)
        bits = precision.get("activation_bits", 8)
        return LayerQuantConfig(weight_bits=bits, activation_bits=bits, granularity=QuantizationGranularity.PER_TENSOR)

    def simulated(self, plan, images=None):
        self.simulation.apply(plan)
        with torch.inference_mode():
            return self.simulation(self.images if images is None else images)

    def reference(self):
        with torch.inference_mode():
            return self.captured.program(self.images)

    def pack(self, plan, **options):
        return pack(self.captured, self.operands, plan, **options)


def _need_kernels():
    if not info().available:
        pytest.skip("the native kernels are not built")


@pytest.fixture(scope="session")
def hybrid():
    _need_kernels()
    torch.manual_seed(5)
    model = Hybrid()
    model.norm.running_mean.copy_(torch.randn(16))
    model.norm.running_var.copy_(torch.rand(16) + 0.5)
    return Prepared(model)


@pytest.fixture
def prepare_small():
    _need_kernels()
    torch.manual_seed(6)
    return Prepared


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)
