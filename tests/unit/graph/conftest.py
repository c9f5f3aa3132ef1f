"""Small models with known structure, captured once."""

import pytest
import torch
from torch import Tensor, nn

from evoquant.graph import CapturedModel, capture


def randomize(model: nn.Module) -> nn.Module:
    """Give batch normalizations statistics and parameters that change values."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            size = module.running_mean.shape
            module.running_mean.copy_(torch.randn(size, generator=generator))
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(size, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(size, generator=generator))
    return model.eval()


class ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if act else []))


class Gate(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 4, 1)
        self.excite = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.expand = ConvNorm(channels, 2 * channels)
        self.spatial = ConvNorm(2 * channels, 2 * channels, 3, groups=2 * channels)
        self.gate = Gate(2 * channels)
        self.project = ConvNorm(2 * channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.gate(self.spatial(self.expand(x))))


class Basic(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class ConvNet(nn.Module):
    """stem 3x3 stride 2, one basic block, one inverted residual with a gate, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = ConvNorm(3, 8, 3, stride=2)
        self.body = nn.Sequential(Basic(8), InvertedResidual(8))
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(nn.functional.dropout(self.body(self.entry(x)).mean((2, 3)), training=self.training))


class Attention(nn.Module):
    """Separate projections; ``fused`` uses scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 2, fused: bool = False):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Attention(width, heads, fused)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.before(x))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class TinyViT(nn.Module):
    """Patches of 4x4 from 3x8x8 images: 4 tokens and a class token of width 12."""

    def __init__(self, fused: bool = True):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.layers = nn.Sequential(Block(12, fused=fused), Block(12, fused=fused))
        self.last = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.last(self.layers(tokens)[:, 0])


class GlobalPart(nn.Module):
    """The joint of a hybrid: local convolutions, attention on tokens, fusion with the input."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.near = ConvNorm(channels, channels, 3)
        self.widen = nn.Conv2d(channels, width, 1, bias=False)
        self.far = Block(width)
        self.narrow = ConvNorm(width, channels)
        self.join = ConvNorm(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        local = self.widen(self.near(x))
        batch, width, height, columns = local.shape
        tokens = self.far(local.flatten(2).transpose(1, 2))
        back = tokens.transpose(1, 2).reshape(batch, width, height, columns)
        return self.join(torch.cat([x, self.narrow(back)], 1))


class Hybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = ConvNorm(3, 6, 3, stride=2)
        self.body = nn.Sequential(InvertedResidual(6), GlobalPart(6, 8), InvertedResidual(6))
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.entry(x)).mean((2, 3)))


def _captured(model: nn.Module, shape: tuple[int, int, int]) -> tuple[nn.Module, CapturedModel]:
    return model, capture(model, shape, name=type(model).__name__)


@pytest.fixture(scope="session")
def convnet() -> tuple[nn.Module, CapturedModel]:
    torch.manual_seed(0)
    return _captured(randomize(ConvNet()), (3, 16, 16))


@pytest.fixture(scope="session")
def tiny_vit() -> tuple[nn.Module, CapturedModel]:
    torch.manual_seed(0)
    return _captured(TinyViT().eval(), (3, 8, 8))


@pytest.fixture(scope="session")
def hybrid() -> tuple[nn.Module, CapturedModel]:
    torch.manual_seed(0)
    return _captured(randomize(Hybrid()), (3, 16, 16))


@pytest.fixture
def capture_small():
    """Capture a model on 3x8x8 images."""
    return lambda model: capture(model.eval(), (3, 8, 8), name="small")
