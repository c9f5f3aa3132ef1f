"""Rotations of streams: exact, of all that a stream touches, and of nothing that does not commute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoquant.calibrate.rotate import even_rotation, ones_keeping_rotation, rotate
from evoquant.calibrate.streams import Side, find_streams
from evoquant.graph import CapturedModel, capture

EXACT = 1e-5
"""Greatest difference of the outputs, relative to the greatest output."""


class Encoder(nn.Module):
    """A transformer with a class token and positions, as ViT has it."""

    def __init__(self, width: int = 24, tokens: int = 17) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width))
        self.first, self.second, self.last = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 40, bias=False), nn.Linear(40, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attended = ((q * 0.3) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        x = x + self.fc2(F.gelu(self.fc1(self.second(x))))
        scores: Tensor = self.head(self.last(x)[:, 0])
        return scores


class Watched(nn.Module):
    """An attention with a projection for each of q, k and v, one of which a rectifier reads too."""

    def __init__(self, what: str, width: int = 24) -> None:
        super().__init__()
        self.what, self.patches = what, nn.Conv2d(3, width, 4, stride=4)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = F.silu(self.patches(x)).flatten(2).transpose(1, 2)
        batch, tokens, width = x.shape
        wide = {"q": self.q(x), "k": self.k(x), "v": self.v(x)}
        q, k, v = (wide[name].view(batch, tokens, 2, width // 2).transpose(1, 2) for name in "qkv")
        attended = ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        scores: Tensor = self.head((F.silu(self.proj(attended)) + wide[self.what].relu()).mean(1))
        return scores


class Bottlenecks(nn.Module):
    """Linear bottlenecks with a residual stream, read by pointwise and by padded convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project, self.padded = nn.Conv2d(24, 16, 1, bias=False), nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        x = x + self.project(F.silu(self.depthwise(F.silu(self.expand(x)))))
        scores: Tensor = self.head(F.silu(self.padded(x)).mean((2, 3)))
        return scores


class Separable(nn.Module):
    """Norms of one group before pointwise convolutions, as MobileViTv2 has them."""

    def __init__(self, groups: int = 1, *, pads: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.GroupNorm(groups, 16)
        self.mix = nn.Conv2d(16, 16, 3 if pads else 1, padding=1 if pads else 0)
        self.last, self.head = nn.GroupNorm(1, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        x = x + self.mix(self.norm(x))
        scores: Tensor = self.head(self.last(x).mean((2, 3)))
        return scores


def _captured(model: nn.Module) -> CapturedModel:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return capture(model.eval(), (3, 16, 16), name="tiny")


def _images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": Encoder,
    "convolutions": Bottlenecks,
    "group norm": Separable,
    "projections": lambda: Watched("v"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_rotated_models_compute_the_same_with_other_weights(name: str, seed: int) -> None:
    captured = _captured(MODELS[name]())
    streams = find_streams(captured)
    before = {op.name: captured.weight(op.name) for op in captured.graph.ops if op.weight_count}

    rotated = rotate(captured, streams, seed=seed)

    expected = captured(_images())
    assert float((rotated(_images()) - expected).abs().max() / expected.abs().max()) < EXACT
    touched = {side.op for stream in streams for side in (*stream.writers, *stream.readers)}
    assert touched
    for op, weight in before.items():
        assert weight is not None
        changed = rotated.weight(op)
        assert changed is not None
        assert torch.equal(weight, changed) is (op not in touched)
        assert captured.weight(op) is weight, "the model itself is left alone"


@pytest.mark.parametrize("make", [even_rotation, ones_keeping_rotation])
@pytest.mark.parametrize("channels", [8, 20, 24, 64])
def test_rotations_are_orthogonal_and_repeatable(make: Callable[..., Tensor], channels: int) -> None:
    rotation = make(channels, seed=3)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(channels, dtype=torch.float64))
    assert torch.equal(rotation, make(channels, seed=3))
    assert not torch.equal(rotation, make(channels, seed=4))


def test_a_rotation_for_norms_keeps_the_ones() -> None:
    one = torch.ones(24, dtype=torch.float64)
    torch.testing.assert_close(ones_keeping_rotation(24, seed=3) @ one, one)


@pytest.mark.parametrize(("channels", "most"), [(64, 1.0), (20, 2**0.5)])
def test_an_even_rotation_takes_no_channel_more_than_others(channels: int, most: float) -> None:
    assert float(even_rotation(channels, seed=0).abs().max()) <= (most + 1e-9) / channels**0.5


def _ops(sides: tuple[Side, ...]) -> list[str]:
    return [side.op for side in sides]


def test_the_residual_stream_of_a_transformer_with_its_constants() -> None:
    stream = find_streams(_captured(Encoder()))[0]
    assert _ops(stream.writers) == ["patches", "proj", "fc2"]
    assert {path for path, _ in stream.constants} == {"token", "positions"}
    assert len(stream.norms) == 3
    assert _ops(stream.readers) == ["qkv", "fc1", "head"]
    assert all(reader.norm is not None for reader in stream.readers)


def test_heads_of_an_attention() -> None:
    _, qk, av = find_streams(_captured(Encoder()))
    assert (_ops(qk.writers), _ops(qk.readers), qk.channels) == (["qkv", "qkv"], [], 12)
    assert (_ops(av.writers), _ops(av.readers), av.channels) == (["qkv"], ["proj"], 12)
    q, k, v = (side.places for side in (*qk.writers, *av.writers))
    for number, places in enumerate((q, k, v)):
        assert torch.equal(places, torch.arange(24).view(2, 12) + 24 * number)
    assert torch.equal(av.readers[0].places, torch.arange(24).view(2, 12))


@pytest.mark.parametrize(("what", "left"), [("k", ["av"]), ("v", ["qk"])])
def test_heads_that_something_else_reads_are_left_alone(what: str, left: list[str]) -> None:
    """With separate projections; with one projection for all three nothing would be left."""
    streams = find_streams(_captured(Watched(what)))
    assert [stream.name for stream in streams if stream.channels == 12] == left


def test_a_reader_without_bias_gets_that_of_its_norm() -> None:
    captured = _captured(Encoder())
    rotated = rotate(captured, find_streams(captured))
    assert not captured.graph.op["fc1"].has_bias
    assert rotated.graph.op["fc1"].has_bias


def test_streams_of_convolutions_end_at_activation_functions() -> None:
    (stream,) = find_streams(_captured(Bottlenecks()))
    assert _ops(stream.writers) == ["stem", "project"]
    assert _ops(stream.readers) == ["expand", "padded"]


@pytest.mark.parametrize("model", [Separable(2), Separable(pads=True)])
def test_norms_of_several_groups_and_padded_readers_behind_norms_forbid_rotations(model: nn.Module) -> None:
    assert find_streams(_captured(model)) == ()


def test_rotation_makes_uneven_channels_alike() -> None:
    captured = _captured(Encoder())
    captured.set_weight("patches", captured.weight("patches") * torch.logspace(-2, 1, 24)[:, None, None, None])  # type: ignore[operator]
    stream = find_streams(captured)[0]

    def unevenness(model: CapturedModel) -> float:
        rows = model.weight("patches")
        assert rows is not None
        size = rows.flatten(1).norm(dim=1)
        return float(size.max() / size.mean())

    assert unevenness(rotate(captured, [stream])) < 0.6 * unevenness(captured)
