import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import PrecisionError
from evoquant.quant import FakeQuant, QuantParams, dequantize, fake_quantize, quantize
from evoquant.quant.codec import CACHE_BLOCK
from evoquant.types import QuantizationScheme
from evoquant.types.precision import NORMAL_LEVELS

UNIFORM, LOG2 = QuantizationScheme.UNIFORM, QuantizationScheme.LOG2


def integers(*values):
    return torch.tensor(values[0] if len(values) == 1 else list(values), dtype=torch.int32)


def uniform(scale, zero_point, bits=8):
    return QuantParams(UNIFORM, bits, torch.tensor(scale), integers(zero_point), 0, 2**bits - 1)


def log2(bits, levels_per_octave, *, is_signed, scale=1.0):
    q_max = 2 ** (bits - 1) - 1 if is_signed else 2**bits - 1
    q_min = -q_max if is_signed else 0
    return QuantParams(LOG2, bits, torch.tensor(scale), integers(0), q_min, q_max, levels_per_octave=levels_per_octave)


def lloyd(*levels, scale=1.0):
    q_max = len(levels) - 1
    bits = q_max.bit_length()
    return QuantParams(QuantizationScheme.LLOYD, bits, torch.tensor(scale), integers(0), 0, q_max, levels=levels)


LAYOUTS = {
    "per tensor": uniform(0.037, 117),
    "16 bits": uniform(0.0001, 31000, bits=16),
    "per channel": QuantParams(UNIFORM, 4, torch.tensor([0.1, 0.2, 0.3]), integers(0, 5, 15), 0, 15, axis=1),
    "last axis": QuantParams(UNIFORM, 8, torch.rand(8) + 0.01, integers([0] * 8), -127, 127, axis=-1),
    "per group": QuantParams(UNIFORM, 4, torch.rand(4, 6) + 0.1, integers([[0] * 6] * 4), -7, 7, group_size=4),
    "power of two": QuantParams(QuantizationScheme.POWER_OF_TWO, 8, torch.tensor(0.125), integers(3), 0, 255),
    "ternary": QuantParams(QuantizationScheme.TERNARY, 2, torch.tensor(0.8), integers(0), -1, 1),
    "binary": QuantParams(QuantizationScheme.BINARY, 1, torch.tensor(0.8), integers(0), 0, 1),
    "normal": QuantParams(
        QuantizationScheme.NORMAL, 4, torch.tensor([0.05, 0.1, 0.2]), integers(0, 0, 0), -8, 7, axis=1
    ),
    "log2": log2(4, 1, is_signed=False),
    "log2 signed": log2(3, 1, is_signed=True, scale=2.3),
    "lloyd": lloyd(-30, -17, -9, -4, -1, 0, 1, 3, 6, 10, 15, 23, 37, 56, 99, 188, scale=0.01),
    "log sqrt2": log2(4, 2, is_signed=False, scale=0.9),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_simulation_equals_codes_decoded(name):
    params = LAYOUTS[name]
    x = 2 * torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
    codes = quantize(x, params)
    assert codes.dtype is torch.int32
    assert codes.shape == x.shape
    assert int(codes.min()) >= params.q_min
    assert int(codes.max()) <= params.q_max
    decoded = dequantize(codes, params)
    assert torch.equal(fake_quantize(x, params), decoded)
    assert torch.equal(FakeQuant(params)(x), decoded)
    assert torch.equal(quantize(decoded, params), codes)


@given(
    x=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
    scale=st.floats(2.0**-20, 2.0**10, width=32),
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]),
    share=st.floats(0, 1),
)
def test_uniform_properties(x, scale, bits, share):
    params = uniform(scale, round(share * (2**bits - 1)), bits=bits)
    x = torch.tensor(x)
    quantized = fake_quantize(x, params)
    assert torch.equal(quantized, dequantize(quantize(x, params), params))
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0
    low, high = dequantize(integers([params.q_min, params.q_max]), params)
    inside = (x >= low) & (x <= high)
    error = (quantized - x).abs()[inside]
    assert bool((error <= scale * 0.5 + 1e-6 * x.abs()[inside]).all())
    assert bool((quantized[x > high] == high).all())
    assert bool((quantized[x < low] == low).all())


@settings(max_examples=50)
@given(
    x=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    bits=st.sampled_from([2, 3, 4]),
    levels_per_octave=st.sampled_from([1, 2]),
    is_signed=st.booleans(),
)
def test_log2_takes_the_nearest_level(x, bits, levels_per_octave, is_signed):
    params = log2(bits, levels_per_octave, is_signed=is_signed)
    values = torch.tensor(x)
    distance = (values[:, None] - params.codebook[None, :]).abs()
    found = (fake_quantize(values, params) - values).abs()
    assert torch.allclose(found, distance.min(dim=1).values, rtol=1e-5, atol=1e-7)


@settings(max_examples=50)
@given(
    x=st.lists(st.floats(-40, 300, width=32), min_size=1, max_size=40),
    bits=st.sampled_from([4, 5, 6, 7]),
    data=st.data(),
)
def test_lloyd_takes_the_nearest_level_of_a_byte(x, bits, data):
    count = 2**bits
    drawn = data.draw(st.lists(st.integers(0, 255), min_size=count, max_size=count, unique=True))
    zero = data.draw(st.sampled_from(drawn))
    params = lloyd(*(level - zero for level in sorted(drawn)))
    points = params.codebook
    steps = torch.tensor(x).round().clamp(points.min(), points.max())
    distance = (steps[:, None] - points[None, :]).abs()
    found = fake_quantize(torch.tensor(x), params)
    assert torch.equal((found - steps).abs(), distance.min(dim=1).values)
    assert bool(torch.isin(found, points).all())


def test_lloyd_has_ascending_levels_with_zero_within_a_byte():
    for levels, reason in (((1, 2), "with zero"), ((0, 3, 2, 5), "ascending"), ((-1, 0, 200, 255), "within 255 steps")):
        with pytest.raises(PrecisionError, match=reason):
            lloyd(*levels)
    found = fake_quantize(torch.tensor([torch.nan, torch.inf, -torch.inf]), lloyd(-5, 0, 1, 9))
    assert bool(found[0].isnan())
    assert found[1:].tolist() == [9.0, -5.0]


def test_large_tensors_are_cut_into_blocks_without_a_difference():
    params = LAYOUTS["per tensor"]
    size = 2 * CACHE_BLOCK * torch.get_num_threads() + 12345
    x = 4 * torch.randn(size, generator=torch.Generator().manual_seed(2))
    expected = fake_quantize(x, params)
    assert torch.equal(FakeQuant(params)(x), expected)
    out = x.clone()
    assert FakeQuant(params)(out, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["per tensor", "log2", "last axis"])
def test_views_and_outputs(name):
    params = LAYOUTS[name]
    x = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(3))
    view = x.transpose(0, 1)
    assert torch.equal(FakeQuant(params)(view), fake_quantize(x, params).transpose(0, 1))
    out = torch.empty_like(x)
    assert FakeQuant(params)(x, out=out) is out
    assert torch.equal(out, fake_quantize(x, params))


def test_input_is_left_alone():
    x = torch.randn(100)
    before = x.clone()
    for params in (LAYOUTS["per tensor"], LAYOUTS["log2 signed"], LAYOUTS["log sqrt2"]):
        FakeQuant(params)(x)
        quantize(x, params)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["per tensor", "log2", "log2 signed", "log sqrt2", "last axis"])
def test_not_a_number_stays_visible(name):
    x = torch.tensor([1.0, torch.nan] * 4)
    assert torch.isnan(FakeQuant(LAYOUTS[name])(x)).tolist() == [False, True] * 4


def test_codes_outside_the_range_are_refused():
    with pytest.raises(PrecisionError, match=r"must lie in \[0, 255\], but got -1 to 3"):
        dequantize(torch.tensor([3, -1]), LAYOUTS["per tensor"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(PrecisionError, match=r"Expected 3 channels on axis 1, but got shape \(3, 4\)"):
        quantize(torch.zeros(3, 4), LAYOUTS["per channel"])
    with pytest.raises(PrecisionError, match=r"Expected 4 rows of 6 groups of 4 values, but got shape \(4, 12\)"):
        quantize(torch.zeros(4, 12), LAYOUTS["per group"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": torch.tensor(0.0)}, "positive and finite"),
        ({"scale": torch.tensor(float("inf"))}, "positive and finite"),
        ({"zero_point": integers(256)}, r"must lie in \[0, 255\], but got 256 to 256"),
        ({"scale": torch.ones(3)}, r"0 dimensions for axis None"),
        ({"scheme": LOG2}, "at most 4 bits"),
    ],
)
def test_parameters_are_checked(changes, message):
    fields = {"scheme": UNIFORM, "bits": 8, "scale": torch.tensor(1.0), "zero_point": integers(0)}
    with pytest.raises(PrecisionError, match=message):
        QuantParams(**{**fields, **changes}, q_min=0, q_max=255)


@given(st.floats(-30, 30, width=32))
def test_normal_levels_take_the_nearest_and_hold_zero(x):
    params = QuantParams(QuantizationScheme.NORMAL, 4, torch.tensor(1.0), integers(0), -8, 7)
    levels = torch.tensor(NORMAL_LEVELS, dtype=torch.float32)
    found = fake_quantize(torch.tensor([x]), params)
    assert float((found - x).abs()) == float((levels - x).abs().min())
    assert dequantize(quantize(found, params), params).equal(found)
    assert 0 in NORMAL_LEVELS
