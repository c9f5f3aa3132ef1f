import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.calibrate import GELU_MINIMUM, SILU_MINIMUM, TensorObserver, activation_params, operand_params
from evoquant.errors import PrecisionError
from evoquant.quant import dequantize, fake_quantize
from evoquant.types import CalibrationMethod, LayerQuantConfig
from evoquant.types.precision import ACTIVATION_BITS, LLOYD_BITS

METHODS = list(CalibrationMethod)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(values, axis=-1):
    observer = TensorObserver("x", channel_axis=axis)
    observer.update(values)
    return observer.finish()


def mse(values, params):
    return float((fake_quantize(values, params) - values).double().square().mean())


DATA = {
    "normal": randn(200, 100),
    "relu": randn(200, 100).relu(),
    "gelu": torch.nn.functional.gelu(2 * randn(200, 100)),
    "heavy": randn(200, 100) ** 3,
    "positive": randn(200, 100).abs() + 3,
    "negative": -randn(200, 100).abs() - 3,
    "constant": torch.full((20, 10), 2.5),
    "zero": torch.zeros(20, 10),
    "softmax": torch.softmax(2 * randn(200, 100), -1),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bits", LLOYD_BITS)
def test_lloyd_levels_are_better_than_equal_steps(name, bits):
    statistics = statistics_of(DATA[name])
    config = LayerQuantConfig(activation_bits=bits, activation_scheme="lloyd")
    params = activation_params(statistics, config)
    assert params.code_count == 2**bits
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0
    uniform = activation_params(statistics, LayerQuantConfig(activation_bits=bits))
    if name not in ("constant", "zero"):
        assert mse(DATA[name], params) < mse(DATA[name], uniform)


@pytest.mark.parametrize("name", DATA)
def test_every_combination_gives_codes_and_an_exact_zero(name):
    statistics = statistics_of(DATA[name])
    for bits, scheme, method, symmetric in itertools.product(
        ACTIVATION_BITS[:-1], ("uniform", "power_of_two"), METHODS, (True, False)
    ):
        config = LayerQuantConfig(
            activation_bits=bits, activation_scheme=scheme, calibration_method=method, use_symmetric=symmetric
        )
        params = activation_params(statistics, config)
        assert params.scale.shape == ()
        assert params.code_count <= 2**bits
        assert params.q_min <= int(params.zero_point) <= params.q_max
        assert params.is_symmetric or not symmetric
        assert float(fake_quantize(torch.zeros(1), params)) == 0.0
        if scheme == "power_of_two":
            assert torch.frexp(params.scale).mantissa == 0.5


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_covers_everything(symmetric):
    values = DATA["gelu"]
    config = LayerQuantConfig(calibration_method="minmax", use_symmetric=symmetric)
    params = activation_params(statistics_of(values), config)
    low, high = float(values.min()), float(values.max())
    expected = max(-low, high) / 127 if symmetric else (high - low) / 255
    assert float(params.scale) == pytest.approx(expected, rel=1e-6)
    assert float((fake_quantize(values, params) - values).abs().max()) <= expected * 0.5001


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_two_sided(percentile):
    values = randn(1000, 200) * 2 + 1
    config = LayerQuantConfig(calibration_method="percentile", percentile=percentile)
    params = activation_params(statistics_of(values), config)
    tail = (1 - percentile / 100) / 2
    low, high = np.quantile(values.numpy(), (tail, 1 - tail))
    width = statistics_of(values).bin_width
    assert float(params.scale) * 255 == pytest.approx(high - low, abs=2 * width)
    share_kept = 1 - float(((values < low) | (values > high)).float().mean())
    assert share_kept == pytest.approx(percentile / 100, abs=1e-4)


@pytest.mark.parametrize("name", ["normal", "relu", "gelu", "heavy", "softmax"])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_from_the_histogram_is_near_the_best_on_the_values(name, bits, symmetric):
    values = DATA[name]
    statistics = statistics_of(values)
    fields = {"activation_bits": bits, "use_symmetric": symmetric}
    found = mse(values, activation_params(statistics, LayerQuantConfig(**fields)))
    low, high = min(float(values.min()), 0.0), float(values.max())
    for low_ratio, high_ratio in itertools.product((0.1, 0.2, 0.4, 0.6, 0.8, 1.0), repeat=2):
        clipped = torch.tensor([low * low_ratio, high * high_ratio])
        config = LayerQuantConfig(**fields, calibration_method="minmax")
        assert found <= mse(values, activation_params(statistics_of(clipped), config)) * 1.02


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.sampled_from([1, 3]), relu=st.booleans(), symmetric=st.booleans())
def test_more_bits_never_hurt_with_mse(seed, power, relu, symmetric):
    values = randn(40, 50, seed=seed) ** power
    values = values.relu() if relu else values
    statistics = statistics_of(values)
    errors = [
        mse(values, activation_params(statistics, LayerQuantConfig(activation_bits=bits, use_symmetric=symmetric)))
        for bits in ACTIVATION_BITS[:-1]
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["normal", "relu", "heavy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_entropy_clips_less_than_half_the_quality_away(name, symmetric):
    """The criterion is another one than square error, but a sane one: within 6 dB of the best at 4 bits."""
    values = DATA[name]
    statistics = statistics_of(values)
    fields = {"activation_bits": 4, "use_symmetric": symmetric}
    entropy = activation_params(statistics, LayerQuantConfig(**fields, calibration_method="entropy"))
    best = activation_params(statistics, LayerQuantConfig(**fields))
    assert mse(values, entropy) <= 4 * mse(values, best)


def test_entropy_ignores_the_peak_of_a_relu_and_cuts_an_outlier():
    values = DATA["relu"].clone()
    values[0, 0] = 60.0
    config = LayerQuantConfig(activation_bits=8, calibration_method="entropy")
    params = activation_params(statistics_of(values), config)
    assert 2.0 < float(params.scale) * 255 < 12.0


@pytest.mark.parametrize("method", METHODS)
def test_known_minimum_replaces_the_least_value_seen(method):
    values = torch.nn.functional.silu(randn(100, 20).abs())
    config = LayerQuantConfig(calibration_method=method)
    statistics = statistics_of(values)
    assert int(activation_params(statistics, config).zero_point) == 0
    with_bound = activation_params(statistics, config, lower_bound=SILU_MINIMUM)
    lowest = float(dequantize(torch.tensor(0), with_bound))
    assert lowest >= SILU_MINIMUM - float(with_bound.scale)
    if method is CalibrationMethod.MIN_MAX:
        assert lowest == pytest.approx(SILU_MINIMUM, abs=float(with_bound.scale) / 2)


def test_known_minima_are_the_minima():
    x = torch.linspace(-5, 5, 2_000_001, dtype=torch.float64)
    assert pytest.approx(float(torch.nn.functional.silu(x).min()), abs=1e-7) == SILU_MINIMUM
    assert pytest.approx(float(torch.nn.functional.gelu(x).min()), abs=1e-7) == GELU_MINIMUM


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["normal", "gelu", "softmax"])
def test_power_of_two_is_within_the_neighbouring_exponents(name, symmetric):
    """An exponent costs at most a step of twice the width: 6 dB, and less because the better side is taken."""
    values = DATA[name]
    statistics = statistics_of(values)
    fields = {"activation_bits": 8, "use_symmetric": symmetric}
    real = mse(values, activation_params(statistics, LayerQuantConfig(**fields)))
    power = mse(values, activation_params(statistics, LayerQuantConfig(**fields, activation_scheme="power_of_two")))
    assert real * 0.98 <= power <= real * 4


@pytest.mark.parametrize("levels_per_octave", [1, 2])
def test_log2_scale_is_searched(levels_per_octave):
    values = DATA["softmax"]
    statistics = statistics_of(values)
    config = LayerQuantConfig(activation_bits=4, activation_scheme="log2")
    params = activation_params(statistics, config, levels_per_octave=levels_per_octave)
    assert (params.q_min, params.q_max, params.levels_per_octave) == (0, 15, levels_per_octave)
    found = mse(values, params)
    for ratio in (0.3, 0.5, 0.7, 0.9, 1.0):
        scale = torch.tensor(statistics.maximum * ratio)
        levels = torch.cat([torch.zeros(1), scale * 2.0 ** (-torch.arange(15.0) / levels_per_octave)])
        nearest = levels[(values[..., None] - levels).abs().argmin(-1)]
        assert found <= float((nearest - values).double().square().mean()) * 1.02


def test_log2_refuses_negative_values():
    config = LayerQuantConfig(activation_bits=4, activation_scheme="log2")
    with pytest.raises(PrecisionError, match="not negative, such as the output of a softmax"):
        activation_params(statistics_of(DATA["normal"]), config)
    with pytest.raises(PrecisionError, match="at most 4 bits, but got 8"):
        activation_params(statistics_of(DATA["softmax"]), LayerQuantConfig(activation_scheme="log2"))


def test_float_and_weight_schemes_are_refused():
    statistics = statistics_of(DATA["normal"])
    with pytest.raises(PrecisionError, match="floating point"):
        activation_params(statistics, LayerQuantConfig(activation_bits=32))
    with pytest.raises(PrecisionError, match="floating point"):
        operand_params(statistics, LayerQuantConfig(activation_bits=32))
    with pytest.raises(PrecisionError, match="'ternary' exists for weights only"):
        activation_params(statistics, LayerQuantConfig(activation_scheme="ternary"))


def test_second_operand_has_a_symmetric_scale_for_each_head():
    heads = torch.tensor([0.1, 1.0, 3.0])
    values = randn(4, 3, 20, 8).clamp(-3, 3) * heads[:, None, None]
    statistics = statistics_of(values, axis=1)
    config = LayerQuantConfig(calibration_method="minmax")
    params = operand_params(statistics, config)
    assert params.axis == 1
    assert params.is_symmetric
    assert torch.allclose(params.scale, values.abs().amax((0, 2, 3)) / 127)
    one = operand_params(statistics, LayerQuantConfig(granularity="per_tensor", activation_scheme="log2"))
    assert one.scale.shape == ()
    assert mse(values, params) < mse(values, one)
