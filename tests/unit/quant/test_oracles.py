"""Published or calculated figures: the quantizer formulas, the worked example, and the table of signal to noise."""

import math

import pytest
import torch

from evoquant.calibrate import TensorObserver, activation_params
from evoquant.quant import FakeQuant, QuantParams, dequantize, fake_quantize, quantize, step_scale, weight_params
from evoquant.types import LayerQuantConfig, QuantizationScheme

SAMPLES = 600_000  # the best 8-bit range depends on the tail, of which 60,000 samples show too little
TABLE_TOLERANCE_DB = 0.6
ZERO = torch.tensor(0, dtype=torch.int32)


def statistics_of(values):
    observer = TensorObserver("x", channel_axis=-1)
    observer.update(values)
    return observer.finish()


def sqnr_db(values, quantized):
    return 10 * math.log10(float(values.double().square().mean() / (values - quantized).double().square().mean()))


def samples(name):
    generator = torch.Generator().manual_seed(5)
    if name == "gaussian":
        return torch.randn(1, SAMPLES, generator=generator)
    if name == "laplace":
        uniform = torch.rand(1, SAMPLES, generator=generator) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())
    return torch.softmax(2 * torch.randn(SAMPLES // 1970, 197, generator=generator), dim=-1)


@pytest.mark.parametrize(("low", "high"), [(3.0, 5.0), (-5.0, -3.0), (-1.0, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize("bits", [4, 8])
def test_affine_round_trip_stays_within_half_a_step(low, high, bits):
    values = torch.linspace(low, high, 1001)
    params = activation_params(
        statistics_of(values), LayerQuantConfig(activation_bits=bits, calibration_method="minmax")
    )
    assert 0 <= int(params.zero_point) <= 2**bits - 1
    step = float(params.scale)
    assert step == pytest.approx((max(high, 0) - min(low, 0)) / (2**bits - 1), rel=1e-6)
    error = (fake_quantize(values, params) - values).abs()
    assert float(error.max()) <= step * (0.5 + 1e-4)
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0


@pytest.mark.parametrize(("low", "high", "zero_point"), [(3.0, 5.0, 0), (-5.0, -3.0, 255)])
def test_ranges_without_zero_are_widened_to_it(low, high, zero_point):
    scale, found = step_scale(torch.tensor([min(low, 0.0)]), torch.tensor([max(high, 0.0)]), 0, 255, is_symmetric=False)
    assert int(found) == zero_point
    assert float(scale) == pytest.approx(5 / 255)


EXAMPLE = torch.tensor([0.01, 0.1, 0.89])


def test_example_uniform():
    params = QuantParams(QuantizationScheme.UNIFORM, 8, torch.tensor(1 / 255), ZERO, 0, 255)
    low, middle, high = fake_quantize(EXAMPLE, params).tolist()
    assert (low, high) == pytest.approx((0.0118, 0.8902), abs=5e-5)
    # 0.1 is 25.5 steps: float32 decides the tie, and both neighbours are half a step away
    assert middle == pytest.approx(0.1020, abs=5e-5) or middle == pytest.approx(0.0980, abs=5e-5)


def test_example_log2():
    params = QuantParams(QuantizationScheme.LOG2, 4, torch.tensor(1.0), ZERO, 0, 15)
    assert fake_quantize(EXAMPLE, params).tolist() == [2.0**-7, 2.0**-3, 1.0]


def test_example_log_sqrt2():
    params = QuantParams(QuantizationScheme.LOG2, 4, torch.tensor(1.0), ZERO, 0, 15, levels_per_octave=2)
    assert fake_quantize(EXAMPLE, params).tolist() == pytest.approx([0.0110, 0.0884, 1.0], abs=5e-5)


@pytest.mark.parametrize(
    ("data", "scheme", "bits", "expected_db"),
    [
        ("gaussian", "uniform", 3, 13.2),
        ("gaussian", "uniform", 4, 18.8),
        ("gaussian", "uniform", 6, 29.5),
        ("gaussian", "uniform", 8, 40.2),
        ("gaussian", "log2", 3, 13.2),
        ("gaussian", "log2", 4, 14.2),
        ("laplace", "uniform", 3, 10.8),
        ("laplace", "uniform", 4, 15.7),
        ("laplace", "uniform", 6, 25.2),
        ("laplace", "log2", 3, 11.5),
        ("laplace", "log2", 4, 14.2),
    ],
)
def test_weight_table(data, scheme, bits, expected_db):
    values = samples(data)
    config = LayerQuantConfig(
        weight_bits=bits, weight_scheme=scheme, granularity="per_tensor", calibration_method="mse"
    )
    found = sqnr_db(values, fake_quantize(values, weight_params(values, config)))
    assert found == pytest.approx(expected_db, abs=TABLE_TOLERANCE_DB)


def test_eight_bit_laplace_reaches_the_analytic_optimum():
    """Density exp(-|x|)/2: uniform error inside [-c, c] plus clipping error 2 exp(-c), least over c."""
    least = min((c / 127) ** 2 / 12 + 2 * math.exp(-c) for c in torch.arange(4, 14, 0.01).tolist())
    values = samples("laplace")
    config = LayerQuantConfig(weight_bits=8, granularity="per_tensor", calibration_method="mse")
    found = sqnr_db(values, fake_quantize(values, weight_params(values, config)))
    assert found == pytest.approx(10 * math.log10(2 / least), abs=0.5)


@pytest.mark.parametrize(
    ("scheme", "bits", "levels_per_octave", "expected_db"),
    [("uniform", 4, 1, 13.0), ("uniform", 8, 1, 29.4), ("log2", 4, 1, 14.1), ("log2", 4, 2, 19.4)],
)
def test_softmax_table(scheme, bits, levels_per_octave, expected_db):
    values = samples("softmax")
    config = LayerQuantConfig(activation_bits=bits, activation_scheme=scheme, calibration_method="mse")
    params = activation_params(statistics_of(values), config, levels_per_octave=levels_per_octave)
    assert sqnr_db(values, FakeQuant(params)(values)) == pytest.approx(expected_db, abs=TABLE_TOLERANCE_DB)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_signed_log2_has_all_codes_but_one_and_decodes_exactly(bits):
    q_max = 2 ** (bits - 1) - 1
    params = QuantParams(QuantizationScheme.LOG2, bits, torch.tensor(0.3), ZERO, -q_max, q_max)
    codes = torch.arange(-q_max, q_max + 1)
    values = dequantize(codes, params)
    assert len(set(values.tolist())) == params.code_count == 2**bits - 1
    scale = float(torch.tensor(0.3))
    for code, value in zip(codes.tolist(), values.tolist(), strict=True):
        assert value == (math.copysign(scale * 2.0 ** -(q_max - abs(code)), code) if code else 0.0)
    assert torch.equal(quantize(values, params), codes.int())


@pytest.mark.parametrize(("bits", "levels_per_octave"), [(3, 1), (4, 1), (3, 2), (4, 2)])
def test_unsigned_log2_uses_every_code(bits, levels_per_octave):
    params = QuantParams(
        QuantizationScheme.LOG2, bits, torch.tensor(0.7), ZERO, 0, 2**bits - 1, levels_per_octave=levels_per_octave
    )
    codes = torch.arange(2**bits)
    values = dequantize(codes, params)
    expected = [0.0] + [0.7 * 2.0 ** (-(2**bits - 1 - code) / levels_per_octave) for code in range(1, 2**bits)]
    assert values.tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(quantize(values, params), codes.int())
