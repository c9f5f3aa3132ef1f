import pytest
import torch
from torch import nn

from evoquant.calibrate import TensorObserver, activation_params, operand_params
from evoquant.calibrate.fisher import TEMPERATURE, LazySamples, OperandSample, operand_key, sample_operands
from evoquant.calibrate.range_by_cost import cheapest_activation_params, cheapest_operand_params
from evoquant.graph import capture
from evoquant.quant import fake_quantize
from evoquant.quant.params import lattice_of
from evoquant.types import LayerQuantConfig


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(values, axis=-1):
    observer = TensorObserver("x", channel_axis=axis)
    observer.update(values)
    return observer.finish()


def cost(values, gradients, params):
    """The definition, written again."""
    return float(((fake_quantize(values, params) - values) * gradients).sum(-1).square().mean())


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.fc2((torch.relu(self.fc1(x)) + 0.1).mean(1))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return capture(TwoLayers().eval(), (3, 8, 8), name="tiny")


@pytest.fixture(scope="module")
def samples(tiny):
    return sample_operands(tiny, torch.split(randn(12, 3, 8, 8), 4), images=12, rows=10_000)


def test_samples_hold_every_operand_by_row(tiny, samples):
    shapes = {op.name: samples[operand_key(op, 0)].values.shape for op in tiny.graph.ops}
    assert shapes == {"stem": (1, 12 * 64, 3), "fc1": (1, 12 * 4, 6), "fc2": (1, 12, 8)}


def test_gradients_are_those_of_the_operand_alone(tiny, samples):
    """Of one linear layer: the gradient of its input is its output's gradient times the weight, so of rank 5 here."""
    gradients = samples[operand_key(tiny.graph.op["fc2"], 0)].gradients[0].double()
    weight = tiny.weight("fc2").double()
    projected = gradients @ torch.linalg.pinv(weight) @ weight
    assert float(gradients.abs().max()) > 0
    assert torch.allclose(projected, gradients, atol=1e-7)


def test_gradients_predict_the_divergence(tiny):
    """Half of E[(g·Δ)²] is the divergence that a small error brings, here the same one for all images."""
    images, error = randn(200, 3, 8, 8, seed=3), 0.05 * randn(8, seed=4)
    logits = tiny(images) / TEMPERATURE
    moved = logits + error @ tiny.weight("fc2").t() / TEMPERATURE
    divergence = (logits.softmax(1) * (logits.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()
    key = operand_key(tiny.graph.op["fc2"], 0)
    found = [sample_operands(tiny, [images], images=200, rows=10_000, seed=seed)[key].gradients for seed in range(10)]
    predicted = (torch.cat(found) @ error).square().mean() / 2 / TEMPERATURE**2
    assert float(predicted) == pytest.approx(float(divergence), rel=0.15)


def test_the_same_seed_gives_the_same_rows(tiny):
    images = randn(6, 3, 8, 8)
    first, second = (sample_operands(tiny, torch.split(images, 3), images=6, rows=7, seed=5) for _ in range(2))
    for key, sample in first.items():
        assert torch.equal(sample.values, second[key].values)
        assert torch.equal(sample.gradients, second[key].gradients)
        assert sample.values.shape[1] <= 7


def test_samples_are_taken_once_and_only_when_asked_for(samples):
    taken = []

    def take():
        taken.append(True)
        return samples

    lazy = LazySamples(take)
    assert not taken
    keys = list(samples)
    assert lazy[keys[0]] is samples[keys[0]]
    assert lazy[keys[1]] is samples[keys[1]]
    assert len(taken) == 1


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scheme", ["uniform", "power_of_two"])
def test_the_cost_is_at_most_that_of_other_methods(bits, symmetric, scheme):
    values, gradients = randn(300, 16) ** 3, randn(300, 16, seed=1)
    statistics = statistics_of(values)
    sample = OperandSample(values[None], gradients[None])
    config = LayerQuantConfig(activation_bits=bits, activation_scheme=scheme, use_symmetric=symmetric)

    found = cheapest_activation_params(statistics, config, sample)

    tolerance = 1.05 if scheme == "uniform" else 2.0
    for method in ("minmax", "mse", "percentile"):
        other = activation_params(statistics, LayerQuantConfig(**{**config.to_dict(), "calibration_method": method}))
        assert cost(values, gradients, found) <= cost(values, gradients, other) * tolerance, method
    assert float(fake_quantize(torch.zeros(1), found)) == 0.0


def test_a_channel_without_effect_does_not_widen_the_range():
    """An outlier channel that the output does not depend on is clipped; square error keeps it."""
    values = randn(400, 8)
    values[:, 0] *= 50
    gradients = randn(400, 8, seed=2)
    gradients[:, 0] = 0.0
    statistics, config = statistics_of(values), LayerQuantConfig(activation_bits=4, use_symmetric=True)

    found = cheapest_activation_params(statistics, config, OperandSample(values[None], gradients[None]))

    assert float(found.scale) * found.q_max < 10.0
    assert float(activation_params(statistics, config).scale) * found.q_max > 30.0


def test_the_cost_is_the_one_that_is_searched():
    values, gradients = randn(50, 6), randn(50, 6, seed=1)
    params = activation_params(statistics_of(values), LayerQuantConfig(activation_bits=5))
    sample = OperandSample(values[None], gradients[None])
    (found,) = sample.costs([(lattice_of(params), float(params.scale))])
    assert found == pytest.approx(cost(values, gradients, params), rel=1e-4)


def test_a_known_minimum_stays():
    values = torch.nn.functional.gelu(randn(300, 8))
    config = LayerQuantConfig(activation_bits=8)
    sample = OperandSample(values[None], torch.ones_like(values)[None])
    found = cheapest_activation_params(statistics_of(values), config, sample, lower_bound=-0.17)
    assert -int(found.zero_point) * float(found.scale) >= -0.18


def test_log2_has_the_levels_that_cost_least():
    values = torch.softmax(3 * randn(300, 40), -1)
    gradients = randn(300, 40, seed=1)
    config = LayerQuantConfig(activation_bits=4, activation_scheme="log2")
    sample = OperandSample(values[None], gradients[None])
    octaves = cheapest_activation_params(statistics_of(values), config, sample)
    finer = cheapest_activation_params(statistics_of(values), config, sample, octave_levels=(1, 2))
    assert octaves.levels_per_octave == 1
    assert cost(values, gradients, finer) <= cost(values, gradients, octaves)
    assert cost(values, gradients, octaves) <= 1.01 * cost(
        values, gradients, activation_params(statistics_of(values), config)
    )


def test_operands_have_a_range_for_each_head():
    values = randn(3, 200, 8) * torch.tensor([1.0, 4.0, 16.0])[:, None, None]
    gradients = randn(3, 200, 8, seed=1)
    statistics = statistics_of(values[None], axis=1)
    sample = OperandSample(values, gradients)
    per_head = LayerQuantConfig(activation_bits=4, weight_bits=4, granularity="per_channel")
    whole = LayerQuantConfig(activation_bits=4, weight_bits=4, granularity="per_tensor")

    found = cheapest_operand_params(statistics, per_head, sample)

    assert found.axis == operand_params(statistics, per_head).axis == 1
    assert found.scale.shape == (3,)
    for head in range(3):
        alone = OperandSample(values[head : head + 1], gradients[head : head + 1])
        own = cheapest_operand_params(statistics_of(values[None, head : head + 1], axis=1), whole, alone)
        assert float(found.scale[head]) == pytest.approx(float(own.scale), rel=0.05)
    assert cheapest_operand_params(statistics, whole, sample).scale.shape == ()


def test_many_bits_keep_the_least_square_error():
    values = randn(100, 8)
    config = LayerQuantConfig(activation_bits=16)
    sample = OperandSample(values[None], torch.zeros_like(values)[None])
    found = cheapest_activation_params(statistics_of(values), config, sample)
    assert torch.equal(found.scale, activation_params(statistics_of(values), config).scale)
