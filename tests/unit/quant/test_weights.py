import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import ModelError, PrecisionError
from evoquant.quant import SMALLEST_SCALE, dequantize, fake_quantize, quantize, weight_params
from evoquant.types import CalibrationMethod, LayerQuantConfig, QuantizationGranularity, QuantizationScheme
from evoquant.types.precision import WEIGHT_BITS

METHODS = list(CalibrationMethod)


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square_error(weight, config):
    return float((fake_quantize(weight, weight_params(weight, config)) - weight).double().square().sum())


def test_every_combination_works_or_is_refused_with_a_reason():
    weight = weights(6, 8, 3, 3)
    worked, reasons = 0, []
    for scheme, bits, granularity, method, symmetric in itertools.product(
        (scheme for scheme in QuantizationScheme if "symmetric" not in scheme.value),
        WEIGHT_BITS,
        QuantizationGranularity,
        METHODS,
        (True, False),
    ):
        config = LayerQuantConfig(
            weight_bits=bits,
            weight_scheme=scheme,
            granularity=granularity,
            calibration_method=method,
            weight_symmetric=symmetric,
            group_size=8 if granularity is QuantizationGranularity.PER_GROUP else None,
        )
        try:
            params = weight_params(weight, config)
        except PrecisionError as error:
            reasons.append(str(error))
            continue
        codes = quantize(weight, params)
        assert torch.equal(fake_quantize(weight, params), dequantize(codes, params))
        assert int(codes.max() - codes.min()) < 2**bits
        worked += 1
    steps = 2 * 8 * 3 * len(METHODS) * 2  # uniform and power-of-two at 2 to 8 and 16 bits, symmetric or not
    codebooks = (3 + 1 + 1 + 1) * 3 * len(METHODS)  # log2 at 2, 3, 4 bits; normal; ternary; binary
    assert worked == steps + codebooks
    assert all("Use " in reason or "Set " in reason or "nothing to quantize" in reason for reason in reasons)


@pytest.mark.parametrize(("granularity", "shape"), [("per_tensor", ()), ("per_channel", (6,)), ("per_group", (6, 9))])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_scale_is_the_greatest_magnitude_over_the_greatest_code(granularity, shape, bits):
    weight = weights(6, 8, 3, 3)
    group_size = 8 if granularity == "per_group" else None
    config = LayerQuantConfig(
        weight_bits=bits, granularity=granularity, calibration_method="minmax", group_size=group_size
    )
    params = weight_params(weight, config)
    expected = weight.reshape(*shape, -1).abs().amax(-1) / (2 ** (bits - 1) - 1)
    assert params.scale.shape == shape
    assert torch.allclose(params.scale, expected, rtol=1e-6)
    assert params.q_min == -params.q_max == 1 - 2 ** (bits - 1)
    assert params.is_symmetric


def test_asymmetric_range_contains_zero_and_uses_every_code():
    weight = weights(5, 64).abs() + 1.0
    config = LayerQuantConfig(weight_bits=4, weight_symmetric=False, calibration_method="minmax")
    params = weight_params(weight, config)
    assert params.zero_point.tolist() == [-8] * 5
    assert torch.allclose(params.scale, weight.amax(1) / 15)
    assert int(quantize(weight, params).max()) == 7


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile_is_the_quantile(symmetric):
    weight = weights(4, 1000)
    config = LayerQuantConfig(calibration_method="percentile", percentile=99.0, weight_symmetric=symmetric)
    scale = weight_params(weight, config).scale.numpy()
    if symmetric:
        expected = np.quantile(weight.abs().numpy(), 0.99, axis=1) / 127
    else:
        expected = (np.quantile(weight.numpy(), 0.995, axis=1) - np.quantile(weight.numpy(), 0.005, axis=1)) / 255
    assert scale == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bits", [3, 5])
def test_mse_is_the_best_of_the_grid(bits):
    weight = weights(3, 200).double().numpy()
    q_max = 2 ** (bits - 1) - 1
    config = LayerQuantConfig(weight_bits=bits, calibration_method="mse")
    found = weight_params(torch.from_numpy(weight), config).scale.numpy()
    for row, scale in zip(weight, found, strict=True):
        grid = np.abs(row).max() / q_max * np.arange(10, 101) / 100
        errors = [np.square(step * np.clip(np.round(row / step), -q_max, q_max) - row).sum() for step in grid]
        assert scale == pytest.approx(grid[int(np.argmin(errors))], rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["normal", "uniform", "heavy"]), symmetric=st.booleans())
def test_more_bits_never_hurt_with_mse(seed, kind, symmetric):
    weight = weights(2, 256, seed=seed)
    weight = {"normal": weight, "uniform": torch.erf(weight), "heavy": weight**3}[kind]
    errors = [
        square_error(weight, LayerQuantConfig(weight_bits=bits, weight_symmetric=symmetric))
        for bits in (2, 3, 4, 5, 6, 7, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("method", METHODS)
def test_mse_is_never_worse_than_another_method(bits, method):
    weight = weights(8, 400) ** 3
    best = square_error(weight, LayerQuantConfig(weight_bits=bits))
    assert best <= square_error(weight, LayerQuantConfig(weight_bits=bits, calibration_method=method)) * 1.01


def test_finer_granularity_helps():
    weight = weights(16, 128) * torch.logspace(-2, 0, 16)[:, None]
    coarse, channel, group = (
        square_error(weight, LayerQuantConfig(weight_bits=4, granularity=name, group_size=size))
        for name, size in (("per_tensor", None), ("per_channel", None), ("per_group", 16))
    )
    assert group < channel < coarse / 2


def test_entropy_clips_an_outlier_and_keeps_uniform_weights():
    values = weights(1, 20_000)
    values[0, 0] = 40.0
    config = LayerQuantConfig(weight_bits=4, granularity="per_tensor", calibration_method="entropy")
    assert float(weight_params(values, config).scale) * 7 < 8.0
    flat = torch.linspace(-1, 1, 20_000)[None]
    assert float(weight_params(flat, config).scale) * 7 > 0.9


@pytest.mark.parametrize("symmetric", [True, False])
def test_power_of_two_is_the_best_exponent(symmetric):
    weight = weights(5, 300)
    config = LayerQuantConfig(weight_bits=4, weight_scheme="power_of_two", weight_symmetric=symmetric)
    params = weight_params(weight, config)
    mantissa, _ = torch.frexp(params.scale)
    assert bool((mantissa == 0.5).all())
    for row in range(5):
        errors = {}
        for exponent in range(-8, 2):
            step = 2.0**exponent
            shift = int(params.zero_point[row])
            codes = (weight[row] / step).round().clamp(params.q_min - shift, params.q_max - shift)
            errors[step] = float((codes * step - weight[row]).square().sum())
        assert float(params.scale[row]) == min(errors, key=errors.get)


def test_ternary_is_the_exact_optimum():
    weight = weights(4, 12)
    config = LayerQuantConfig(weight_bits=2, weight_scheme="ternary")
    found = (fake_quantize(weight, weight_params(weight, config)) - weight).square().sum(1)
    for row, error in zip(weight, found, strict=True):
        best = min(
            float((signs * row.abs()[kept].mean() * kept - row).square().sum())
            for signs in [row.sign()]
            for mask in itertools.product((False, True), repeat=12)
            if (kept := torch.tensor(mask)).any()
        )
        assert float(error) == pytest.approx(best, rel=1e-5)


def test_binary_is_the_sign_times_the_mean_magnitude():
    weight = weights(4, 50)
    quantized = fake_quantize(weight, weight_params(weight, LayerQuantConfig(weight_bits=1, weight_scheme="binary")))
    assert torch.allclose(quantized, weight.sign() * weight.abs().mean(1, keepdim=True))


def test_two_bit_log2_finds_the_ternary_optimum():
    weight = weights(4, 400)
    ternary = square_error(weight, LayerQuantConfig(weight_bits=2, weight_scheme="ternary"))
    log2 = square_error(weight, LayerQuantConfig(weight_bits=2, weight_scheme="log2"))
    assert ternary <= log2 <= ternary * 1.002


def test_normal_levels_leave_a_fifth_less_noise_of_bell_shaped_rows():
    """What 16 levels with a zero can gain on 15 equal steps is 1.1 to 1.3 dB."""
    weight = weights(64, 512)
    normal, uniform = (
        square_error(weight, LayerQuantConfig(weight_bits=4, weight_scheme=scheme)) for scheme in ("normal", "uniform")
    )
    assert normal < 0.8 * uniform


def test_clip_replaces_calibration():
    weight = weights(3, 40)
    params = weight_params(weight, LayerQuantConfig(weight_bits=4), clip=torch.tensor([0.7, 1.4, 99.0]))
    expected = torch.tensor([0.7, 1.4, float(weight[2].abs().max())]) / 7
    assert torch.allclose(params.scale, expected)


@pytest.mark.parametrize("scheme", ["uniform", "power_of_two", "normal", "log2", "ternary", "binary"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_zero_stay_zero(scheme, method):
    bits = {"ternary": 2, "binary": 1}.get(scheme, 4)
    config = LayerQuantConfig(weight_bits=bits, weight_scheme=scheme, calibration_method=method)
    weight = torch.zeros(3, 16)
    weight[1] = weights(16)
    quantized = fake_quantize(weight, weight_params(weight, config))
    assert float(quantized[[0, 2]].abs().max()) <= SMALLEST_SCALE
    assert float(quantized[1].abs().max()) > 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    with pytest.raises(ModelError, match=r"shape \(1, 2\) has values that are not finite"):
        weight_params(torch.tensor([[1.0, value]]), LayerQuantConfig())


def test_float_weights_have_no_parameters():
    with pytest.raises(PrecisionError, match="nothing to quantize"):
        weight_params(weights(2, 2), LayerQuantConfig(weight_bits=32))
