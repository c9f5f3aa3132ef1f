import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoquant.calibrate.channel_flow import NO_ATOM, trace_channels
from evoquant.calibrate.channel_ranges import channel_ranges, place
from evoquant.calibrate.moments import collect_moments
from evoquant.calibrate.rescale import rescale, rescaled_moments
from evoquant.calibrate.rescale_choice import equal_ranges, families
from evoquant.graph import capture

EXACT = 1e-4
"""Greatest difference of the outputs, relative to the greatest output."""


class Attention(nn.Module):
    def __init__(self, width=24, heads=3):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * 0.3) @ k.transpose(-2, -1)).softmax(dim=-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Transformer(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.attention = Attention(width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 40, bias=False), nn.Linear(40, width)
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.attention(self.stem(x).flatten(2).transpose(1, 2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return self.head(self.last(x).mean(1))


class Bottlenecks(nn.Module):
    """Two linear bottlenecks that share a residual stream, with a depthwise convolution between rectifiers."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.expand, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project, self.second = nn.Conv2d(16, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.project(self.activation(self.depthwise(self.activation(self.expand(x)))))
        x = x + y
        return self.head((x + self.second(x)).mean((2, 3)))


class Normed(nn.Module):
    """The norm of one group before convolutions, as in MobileViTv2."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(1, 12)
        self.left, self.right = nn.Conv2d(12, 7, 1), nn.Conv2d(12, 7, 1, bias=False)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.head((F.silu(self.left(x)) + F.silu(self.right(x))).mean((2, 3)))


def captured(model, seed=0):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) * parameter.abs().mean()
    return capture(model.eval(), (3, 16, 16), name="tiny")


def images(count=4):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def ranges_of(model, flow):
    return channel_ranges(model.program, flow.readers, [images()])


def random_factors(flow, seed=1):
    """Any factors that are allowed."""
    generator = torch.Generator().manual_seed(seed)
    by_factor = torch.rand(flow.factors, generator=generator, dtype=torch.float64) * 4 + 0.2
    factor_of = torch.from_numpy(flow.factor_of)
    return torch.where(factor_of == NO_ATOM, 1.0, by_factor[factor_of.clamp(min=0)])


def relative(first, second):
    return float((first - second).abs().max() / first.abs().max())


MODELS = {
    "transformer": Transformer,
    "relu": lambda: Bottlenecks(nn.ReLU()),
    "relu6": lambda: Bottlenecks(nn.ReLU6()),
    "silu": lambda: Bottlenecks(nn.SiLU()),
    "group norm": Normed,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [1, 2])
def test_any_allowed_rescaling_is_exact(name, seed):
    model = captured(MODELS[name]())
    flow = trace_channels(model)
    factors = random_factors(flow, seed)
    assert bool((factors != 1).any())

    changed = rescale(model, flow, factors)

    assert relative(model(images()), changed(images())) < EXACT
    weights = [op.name for op in model.graph.ops if op.weight_count]
    assert any(not torch.equal(model.weight(op), changed.weight(op)) for op in weights)


def test_the_captured_model_itself_is_left_alone():
    model = captured(Transformer())
    before = {op.name: model.weight(op.name) for op in model.graph.ops if op.weight_count}
    flow = trace_channels(model)
    rescale(model, flow, random_factors(flow))
    assert all(torch.equal(model.weight(name), weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("activation", "through"),
    [(nn.ReLU(), True), (nn.ReLU6(), False), (nn.SiLU(), False), (nn.Hardswish(), False)],
)
def test_factors_pass_only_what_commutes_with_them(activation, through):
    flow = trace_channels(captured(Bottlenecks(activation)))
    scaled = {reader.op for reader in flow.readers if (flow.factors_read(reader) != NO_ATOM).any()}
    assert ({"depthwise", "project"} <= scaled) is through
    assert "expand" in scaled, "the linear stream between bottlenecks has factors whatever the activation is"


def test_a_residual_stream_has_one_factor_for_each_channel():
    flow = trace_channels(captured(Bottlenecks(nn.ReLU6())))
    by_name = {source.name: flow.factor_of[source.atoms] for source in flow.sources}
    assert (by_name["stem"] == by_name["project"]).all()
    assert (by_name["stem"] == by_name["second"]).all()
    assert len(set(by_name["stem"].tolist())) == 8


def test_equal_ranges_make_the_channels_of_a_norm_equal():
    model = captured(Transformer())
    flow = trace_channels(model)
    ranges = ranges_of(model, flow)
    family = next(family for family in families(flow) if family.name == "fc1")
    assert family.kind == "norms"

    changed = rescale(model, flow, equal_ranges(model, flow, family, ranges))

    after = ranges_of(changed, trace_channels(changed))[place(family.readers[0])].magnitude
    before = ranges[place(family.readers[0])].magnitude
    assert float(after.max() / after.min()) == pytest.approx(1.0, abs=1e-3)
    assert float(before.max() / before.min()) > 1.5
    assert relative(model(images()), changed(images())) < EXACT


def test_factors_of_different_families_multiply():
    model = captured(Transformer())
    flow = trace_channels(model)
    ranges = ranges_of(model, flow)
    parts = [equal_ranges(model, flow, family, ranges) for family in families(flow)]
    together = torch.stack(parts).prod(0)
    for family, part in zip(families(flow), parts, strict=True):
        assert torch.equal(together[family.atoms], part[family.atoms])
    assert relative(model(images()), rescale(model, flow, together)(images())) < EXACT


@pytest.mark.parametrize("name", MODELS)
def test_moments_of_the_rescaled_model_follow_from_those_of_the_model(name):
    model = captured(MODELS[name]())
    flow = trace_channels(model)
    factors = random_factors(flow)
    batches = [images(8)]

    found = rescaled_moments(model, flow, factors, collect_moments(model.program, model.graph, batches))

    changed = rescale(model, flow, factors)
    expected = collect_moments(changed.program, changed.graph, batches)
    for op, moments in expected.items():
        for part in ("fitted", "held_out"):
            second, wanted = getattr(found[op], part).second, getattr(moments, part).second
            assert relative(wanted, second) < EXACT
            assert torch.allclose(getattr(found[op], part).mean, getattr(moments, part).mean, atol=1e-4)


def test_constants_that_the_program_computes_hold_no_channels():
    class Coded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            places = torch.ones(x.shape[0], 1, x.shape[2], x.shape[3]).to(x.device).cumsum(2)
            return self.head((x + 0.1 * places).mean((2, 3)))

    assert trace_channels(captured(Coded())).factors == 0
