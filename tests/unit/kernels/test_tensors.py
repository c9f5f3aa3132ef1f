"""Operations on tensors against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import KernelError
from evoquant.kernels import ActivationCodes, Matmul, Weights, info, pack_gemm
from evoquant.kernels import tensors as kt

pytestmark = pytest.mark.skipif(not info().available, reason="the native kernels are not built")
ISAS = info().supported
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6), "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)), "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}  # fmt: skip
ABSOLUTE = 2e-6
"""Error of the approximated exponential and error function over the range of activations."""


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 15, 64, 1001])
def test_activation_functions(name, size):
    x = np.linspace(-12, 12, size, dtype=np.float32)
    np.testing.assert_allclose(kt.activate(x, name), FUNCTIONS[name](x.astype(np.float64)), atol=ABSOLUTE, rtol=1e-5)


@given(st.integers(1, 300), st.floats(0.01, 3.0), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_codes_and_back(size, scale, zero_point, seed):
    x = np.random.default_rng(seed).normal(0, 40 * scale, size).astype(np.float32)
    codes = ActivationCodes(scale, zero_point)
    got = kt.quantize(x, codes)
    inverse = np.float32(1) / np.float32(scale)
    np.testing.assert_array_equal(got, np.clip(np.rint(x * inverse) + zero_point, 0, 255))
    back = kt.dequantize(got, codes)
    inside = (got > 0) & (got < 255)
    assert np.all(np.abs(back - x)[inside] <= scale * 0.501 + 1e-5)


def test_what_is_not_a_number_becomes_the_smallest_code():
    x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    np.testing.assert_array_equal(kt.quantize(x, ActivationCodes(1.0, 9, 3, 200)), [3 - 3, 200 - 3, 0, 9 - 3])


@pytest.mark.parametrize("columns", [1, 5, 16, 197])
def test_softmax(columns, rng):
    x = (10 * rng.standard_normal((7, columns))).astype(np.float32)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(kt.softmax(x), e / e.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("columns", [1, 5, 16, 192])
def test_layer_norm(columns, rng):
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, columns), columns, columns))
    centred = x - x.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(kt.layer_norm(x, weight, bias), expected, atol=2e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 5), (33, 16), (1024, 48)])
def test_group_norm(rows, columns, rng):
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, columns), columns, columns))
    x += 3.0
    expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias
    np.testing.assert_allclose(kt.group_norm(x, weight, bias), expected, atol=2e-5)


@pytest.mark.parametrize(("columns", "groups"), [(6, 3), (48, 2), (64, 64)])
def test_group_norm_of_several_groups(columns, groups, rng):
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((33, columns), columns, columns))
    apart = x.reshape(33, groups, -1)
    deviation = np.sqrt(apart.var((0, 2), keepdims=True) + 1e-5)
    expected = ((apart - apart.mean((0, 2), keepdims=True)) / deviation).reshape(x.shape) * weight + bias
    np.testing.assert_allclose(kt.group_norm(x, weight, bias, groups=groups), expected, atol=2e-5)
    with pytest.raises(KernelError, match=f"divide {columns} columns, but got 5"):
        kt.group_norm(x, weight, bias, groups=5)


def test_sums_products_means_and_maxima(rng):
    a, b = rng.standard_normal((2, 6, 8, 5)).astype(np.float32)
    np.testing.assert_array_equal(kt.add(a, b), a + b)
    np.testing.assert_array_equal(kt.mul(a, b), a * b)
    rows = a.reshape(48, 5)
    np.testing.assert_allclose(kt.mean_rows(rows), rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(kt.scale_channels(rows, b[0, 0], b[0, 1]), rows * b[0, 0] + b[0, 1], atol=1e-6)
    pooled = kt.max_pool(a, kernel=2, stride=2)
    np.testing.assert_array_equal(pooled, a.reshape(3, 2, 4, 2, 5).max((1, 3)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_come_back(bits, rng):
    indices = rng.integers(0, 2**bits, 777).astype(np.uint8)
    packed = kt.pack_bits(indices, bits)
    assert packed.size == 4 * 32 * bits
    np.testing.assert_array_equal(kt.unpack_bits(packed, 777, bits), indices)


def test_an_index_beyond_its_bits_is_named():
    with pytest.raises(KernelError, match="value 4 at 1 does not fit 2 bits"):
        kt.pack_bits(np.array([1, 4], np.uint8), 2)


def gemmlowp(value, multiplier, shift):
    """The fixed-point form in unbounded integers: high half of the doubled product, then a rounding shift."""
    value = max(-(2**31), min(2**31 - 1, value << max(shift, 0)))
    product = value * multiplier
    high = (abs(product) + 2**30) // 2**31 if product >= 0 else -((abs(product) + 2**30 - 1) // 2**31)
    right = max(-shift, 0)
    magnitude = (abs(high) + (1 << right >> 1)) >> right
    return magnitude if high >= 0 else -magnitude


def test_requantize_is_the_fixed_point_form(rng):
    accumulators = rng.integers(-(2**24), 2**24, (40, 6)).astype(np.int32)
    multiplier = rng.integers(2**30, 2**31, 6).astype(np.int32)
    shift = np.array([-9, -12, -16, -18, -1, 0], np.int8)
    to = ActivationCodes(1.0, 128)
    got = kt.requantize(accumulators, to, shift=shift, multiplier=multiplier)
    for (row, column), code in np.ndenumerate(got):
        exact = gemmlowp(int(accumulators[row, column]), int(multiplier[column]), int(shift[column]))
        assert code == min(255, max(0, exact + 128))


def test_requantize_by_a_shift_and_a_table():
    accumulators = np.array([[6, -6, 7, 2000, -2000]], np.int32).T.copy()
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    got = kt.requantize(accumulators, ActivationCodes(1.0, 10), shift=np.array([2], np.int8), table=table)
    np.testing.assert_array_equal(got[:, 0], 255 - np.array([12, 9, 12, 255, 0]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 17, 9), (33, 31, 50)])
def test_a_matmul_of_codes(isa, bits, transposed, size, rng):
    m, n, k = size
    a = rng.standard_normal((2, 3, m, k)).astype(np.float32)
    b = rng.standard_normal((2, 3, n, k) if transposed else (2, 3, k, n)).astype(np.float32)
    b = b.transpose(0, 1, 3, 2) if transposed else b
    codes = ActivationCodes.uniform(0.25, 2 ** (bits - 1), bits=bits)
    top = 2 ** (bits - 1) - 1
    left = np.clip(np.rint(a * 4) + codes.zero_point, 0, 2**bits - 1) - codes.zero_point
    right = np.clip(np.rint(b * 8), -top, top)
    out = Matmul(codes, b_scale=0.125, b_bits=bits, factor=0.5, isa=isa)(a, b)
    np.testing.assert_array_equal(out, (left @ right * 0.25 * 0.125 * 0.5).astype(np.float32))
    plain = Matmul(isa=isa)(a, b)
    np.testing.assert_allclose(plain, a @ b, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [3, 4])
def test_a_matmul_of_log2_codes(isa, bits, rng):
    a = rng.dirichlet(np.ones(40) * 0.2, (1, 2, 9)).astype(np.float32)
    b = rng.integers(-7, 8, (1, 2, 40, 12)).astype(np.float32)
    levels = 2.0 ** -np.arange(2**bits - 1)
    nearest = levels[np.abs(a[..., None] - levels).argmin(-1)]
    nearest[a <= levels[-1] / 2] = 0
    out = Matmul(ActivationCodes.log2(1.0, bits=bits), b_scale=1.0, b_bits=4, isa=isa)(a, b)
    np.testing.assert_allclose(out, nearest @ b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_a_matmul_of_uneven_levels(isa, bits, rng):
    levels = np.sort(rng.choice(np.arange(1, 255), 2**bits - 2, replace=False))
    levels = np.concatenate([[0], levels, [255]]) - levels[3]
    a = (rng.standard_normal((1, 2, 9, 40)) * 80).astype(np.float32)
    b = rng.integers(-7, 8, (1, 2, 40, 12)).astype(np.float32)
    steps = np.clip(np.rint(a), levels[0], levels[-1])
    points = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, steps)]  # half way to the lower one
    quantizer = ActivationCodes.uneven(1.0, levels.tolist())
    assert quantizer.operand_max == 255
    out = Matmul(quantizer, b_scale=1.0, b_bits=4, isa=isa)(a, b)
    np.testing.assert_array_equal(out, (points @ b).astype(np.float32))
    weights = Weights(b[0, 0].T.astype(np.int8).copy(), 4, scales=np.ones(12, np.float32))
    gemm = pack_gemm(weights, quantizer, isa=isa)(a[0, 0])
    np.testing.assert_array_equal(gemm, (points[0, 0] @ b[0, 0]).astype(np.float32))


def test_levels_must_be_bytes_with_the_zero_point():
    with pytest.raises(KernelError, match="have the zero point 3 among them"):
        ActivationCodes(1.0, 3, 0, 30, levels=(0, 7, 30))
    with pytest.raises(KernelError, match=r"must lie in \[0, 255\]"):
        ActivationCodes.uneven(1.0, (-50, 0, 210))


def test_matmul_operands_must_fit():
    matmul = Matmul()
    a = np.zeros((1, 2, 3, 4), np.float32)
    with pytest.raises(KernelError, match=r"expected b float32 \(1, 2, 4, n\)"):
        matmul(a, np.zeros((1, 2, 5, 3), np.float32))
    with pytest.raises(KernelError, match="expected a float32"):
        matmul(a[0], a)
    with pytest.raises(KernelError, match="more than 8 bits"):
        Matmul(ActivationCodes.uniform(1.0, bits=16))
