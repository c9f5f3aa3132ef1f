"""Packed weights against plain numpy, bit for bit where the arithmetic is integer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import KernelError
from evoquant.kernels import ActivationCodes, Weights, info, pack_conv, pack_depthwise, pack_gemm
from evoquant.types import ConvGeometry
from evoquant.types.precision import NORMAL_LEVELS

pytestmark = pytest.mark.skipif(not info().available, reason="the native kernels are not built")
ISAS = info().supported
CODEBOOKS = {
    "normal": (4, NORMAL_LEVELS),
    "log2": (4, (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64)),
    "ternary": (2, (-1, 0, 1)),
    "binary": (1, (-1, 1)),
}


def codes_of(x, codes):
    rounded = np.rint(x * np.float32(1 / np.float32(codes.scale))) + codes.zero_point
    return np.clip(rounded, codes.q_min, codes.q_max).astype(np.int64)


def fused(accumulators, scales, bias):
    """One rounding: exact in float64 for these sizes, then to float32."""
    return (accumulators.astype(np.float64) * scales.astype(np.float64) + bias.astype(np.float64)).astype(np.float32)


def weights_and_input(rng, m, n, k, bits, codebook=None):
    if codebook is None:
        values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (n, k)).astype(np.int8)
    else:
        values = rng.choice(np.asarray(codebook, np.int8), (n, k))
    scales = (2.0 ** rng.integers(-8, -4, n)).astype(np.float32)
    weights = Weights(values, bits, codebook, scales, rng.integers(-8, 8, n).astype(np.float32))
    return weights, rng.standard_normal((m, k)).astype(np.float32)


def expected_gemm(weights, x, codes):
    centred = codes_of(x, codes) - codes.zero_point
    accumulators = centred @ weights.values.T.astype(np.int64)
    return fused(accumulators, np.float32(codes.scale) * weights.scales, weights.bias)


@given(
    m=st.integers(1, 40), n=st.integers(1, 70), k=st.integers(1, 150), weight_bits=st.integers(1, 8),
    activation_bits=st.integers(4, 8), symmetric=st.booleans(), isa=st.sampled_from(ISAS or ("reference",)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_gemm_is_the_integer_product(m, n, k, weight_bits, activation_bits, symmetric, isa, seed):
    rng = np.random.default_rng(seed)
    weights, x = weights_and_input(rng, m, n, k, weight_bits)
    zero_point = int(rng.integers(0, 2**activation_bits))
    codes = ActivationCodes.uniform(
        2.0**-3, 0 if symmetric else zero_point, bits=activation_bits, is_symmetric=symmetric
    )
    out = pack_gemm(weights, codes, isa=isa)(x)
    np.testing.assert_array_equal(out, expected_gemm(weights, x, codes))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("k", [7, 16, 65])
def test_codebooks_multiply_the_values_they_stand_for(isa, name, k, rng):
    bits, codebook = CODEBOOKS[name]
    weights, x = weights_and_input(rng, 9, 21, k, bits, codebook)
    codes = ActivationCodes.uniform(2.0**-4, 100, bits=8)
    np.testing.assert_array_equal(pack_gemm(weights, codes, isa=isa)(x), expected_gemm(weights, x, codes))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fill", [(-128, 255), (127, 255), (-128, 0)])
def test_extreme_operands_do_not_saturate(isa, fill):
    weight, code = fill
    weights = Weights(np.full((33, 128), weight, np.int8), 8, None, np.ones(33, np.float32), np.zeros(33, np.float32))
    codes = ActivationCodes(1.0, 0, 0, 255)
    out = pack_gemm(weights, codes, isa=isa)(np.full((7, 128), code, np.float32))
    np.testing.assert_array_equal(out, np.full((7, 33), 128.0 * weight * code, np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_a_scale_per_group_of_channels(isa, rng):
    values = rng.integers(-8, 8, (20, 96)).astype(np.int8)
    scales = (2.0 ** rng.integers(-6, -2, (20, 3))).astype(np.float32)
    codes = ActivationCodes(0.25, 7, 0, 255)
    x = rng.standard_normal((11, 96)).astype(np.float32)
    out = pack_gemm(Weights(values, 4, None, scales, None, 32), codes, isa=isa)(x)
    centred = (codes_of(x, codes) - 7).reshape(11, 3, 32)
    parts = np.einsum("mgk,ngk->mng", centred, values.reshape(20, 3, 32).astype(np.int64))
    np.testing.assert_allclose(out, (parts * scales).sum(-1) * 0.25, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("bits", "codebook"),
    [(8, None), (7, None), (4, None), CODEBOOKS["normal"], CODEBOOKS["log2"], CODEBOOKS["ternary"]],
)
def test_a_long_reduction_is_summed_in_stretches(isa, bits, codebook, rng):
    """Weights that exceed the first cache, divided inside of the reduction; 20 rows are several tiles."""
    weights, x = weights_and_input(rng, 20, 37, 1601, bits, codebook)
    codes = ActivationCodes.uniform(2.0**-5, 90, bits=8)
    np.testing.assert_array_equal(pack_gemm(weights, codes, isa=isa)(x), expected_gemm(weights, x, codes))


def windows(x, geometry, padding_value):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    padded = np.pad(x, ((ph, ph), (pw, pw), (0, 0)), constant_values=padding_value)
    rows = (padded.shape[0] - dh * (kh - 1) - 1) // sh + 1
    columns = (padded.shape[1] - dw * (kw - 1) - 1) // sw + 1
    bottom, right = (rows - 1) * sh + 1, (columns - 1) * sw + 1
    taps = [padded[i * dh :, j * dw :][:bottom:sh, :right:sw] for i in range(kh) for j in range(kw)]
    return np.stack(taps).reshape(kh, kw, rows, columns, -1)


GEOMETRIES = [
    ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1), ConvGeometry((3, 3), (2, 2), (1, 1), (1, 1), 1),
    ConvGeometry((1, 1), (2, 2), (0, 0), (1, 1), 1), ConvGeometry((2, 5), (1, 2), (0, 2), (1, 1), 1),
    ConvGeometry((3, 3), (1, 1), (2, 2), (2, 2), 1), ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 3),
]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bits", [3, 8])
def test_a_convolution_is_the_sum_over_its_windows(isa, geometry, bits, rng):
    x = rng.standard_normal((9, 8, 6)).astype(np.float32)
    width = 6 // geometry.groups
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (12, width, *geometry.kernel)).astype(np.int8)
    codes = ActivationCodes(0.25, 120, 0, 255)
    out = pack_conv(Weights(values, bits, None, np.ones(12, np.float32)), geometry, codes, isa=isa)(x)
    seen = windows(codes_of(x, codes) - 120, geometry, 0)
    parts = [
        np.einsum("ijyxc,ncij->yxn", seen[..., g * width : (g + 1) * width], part.astype(np.int64))
        for g, part in enumerate(np.split(values, geometry.groups))
    ]
    np.testing.assert_array_equal(out, np.concatenate(parts, -1).astype(np.float32) * np.float32(0.25))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "bits"), [(96, 8), (96, 4), (260, 8)])
def test_a_convolution_of_many_channels_is_summed_in_stretches(isa, channels, bits, rng):
    """Rows of the window one by one, and a row that is divided itself."""
    x = rng.standard_normal((6, 7, channels)).astype(np.float32)
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (33, channels, 3, 3)).astype(np.int8)
    codes = ActivationCodes(0.25, 120, 0, 255)
    packed = pack_conv(Weights(values, bits, None, np.ones(33, np.float32)), GEOMETRIES[0], codes, isa=isa)
    seen = windows(codes_of(x, codes) - 120, GEOMETRIES[0], 0)
    parts = np.einsum("ijyxc,ncij->yxn", seen, values.astype(np.int64))
    np.testing.assert_array_equal(packed(x), parts.astype(np.float32) * np.float32(0.25))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_keeps_channels_apart(isa, kernel, stride, rng):
    geometry = ConvGeometry((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1), 19)
    x = rng.standard_normal((10, 13, 19)).astype(np.float32)
    values = rng.integers(-127, 128, (19, 1, kernel, kernel)).astype(np.int8)
    codes = ActivationCodes(0.125, 64, 0, 255)
    bias = rng.integers(-5, 5, 19).astype(np.float32)
    out = pack_depthwise(Weights(values, 8, None, np.ones(19, np.float32), bias), geometry, codes, isa=isa)(x)
    seen = windows(codes_of(x, codes) - 64, geometry, 0)
    accumulators = np.einsum("ijyxc,cij->yxc", seen, values[:, 0].astype(np.int64))
    np.testing.assert_array_equal(out, fused(accumulators, np.full(19, 0.125, np.float32), bias))


@pytest.mark.parametrize("isa", ISAS)
def test_the_epilogue_activates_then_adds_the_residual(isa, rng):
    weights = rng.standard_normal((18, 10)).astype(np.float32)
    x, residual = rng.standard_normal((5, 10)).astype(np.float32), rng.standard_normal((5, 18)).astype(np.float32)
    product = x @ weights.T
    for name, function in {"relu": lambda y: np.maximum(y, 0), "silu": lambda y: y / (1 + np.exp(-y))}.items():
        out = pack_gemm(Weights(weights), activation=name, isa=isa)(x, residual=residual)
        np.testing.assert_allclose(out, function(product) + residual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3])
def test_gains_multiply_what_the_activation_function_gives(isa, groups, rng):
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), groups)
    values = rng.integers(-127, 128, (57, 6 // groups, 3, 3)).astype(np.int8)
    gains, scales = rng.uniform(0.1, 4, 57).astype(np.float32), rng.uniform(0.01, 0.02, 57).astype(np.float32)
    x, residual = rng.standard_normal((7, 9, 6)).astype(np.float32), rng.standard_normal((7, 9, 57)).astype(np.float32)
    codes = ActivationCodes(0.02, 120, 0, 255)
    plain = Weights(values, 8, None, scales)
    packed = pack_conv(replace(plain, gains=gains), geometry, codes, activation="silu", isa=isa)
    expected = pack_conv(plain, geometry, codes, activation="silu", isa=isa)(x) * gains
    np.testing.assert_array_equal(packed(x), expected)
    np.testing.assert_array_equal(packed(x, residual=residual), expected + residual)
    to = ActivationCodes(0.05, 30, 0, 255)
    np.testing.assert_allclose(packed(x, to=to).astype(int), codes_of(expected, to), atol=1)
    assert (packed(x, to=to) == codes_of(expected, to)).mean() > 0.999
    with pytest.raises(KernelError, match=r"expected gains float32 \(57\)"):
        pack_conv(replace(plain, gains=gains[1:]), geometry, codes, isa=isa)


def test_rows_may_be_strided(rng):
    weights, x = weights_and_input(rng, 6, 5, 12, 8)
    wide = np.zeros((6, 40), np.float32)
    wide[:, 7:19] = x
    packed = pack_gemm(weights, ActivationCodes(0.1, 128))
    np.testing.assert_array_equal(packed(wide[:, 7:19]), packed(x))


def test_packed_weights_take_the_bits_they_say():
    for bits in range(1, 9):
        values = np.zeros((64, 256), np.int8) - (bits == 1)
        packed = pack_gemm(Weights(values, bits, scales=np.ones(64, np.float32)), ActivationCodes(1.0))
        assert packed.weight_bytes == 64 * 256 * bits // 8


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_results(threads, rng):
    from evoquant.kernels import set_threads

    weights, x = weights_and_input(rng, 300, 70, 80, 4)
    packed = pack_gemm(weights, ActivationCodes(0.1, 128))
    alone = packed(x)
    try:
        set_threads(threads)
        np.testing.assert_array_equal(packed(x), alone)
        np.testing.assert_array_equal(packed(x[:3]), alone[:3])
    finally:
        set_threads(1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 9), np.float32), r"expected x float32 \(any, 8\).* but got float32 \(3, 9\)"),
        (np.zeros((3, 8), np.float64), "got float64"),
        (np.zeros((8, 3), np.float32).T, "not contiguous"),
        (np.zeros(8, np.float32), r"got float32 \(8,\)"),
        (np.frombuffer(bytes(97), np.uint8)[1:].view(np.float32).reshape(3, 8), "not aligned"),
        ([[0.0] * 8] * 3, "got list"),
    ],
)
def test_a_wrong_input_is_an_error_that_says_what_came(x, message):
    packed = pack_gemm(Weights(np.zeros((4, 8), np.int8), 8, scales=np.ones(4, np.float32)), ActivationCodes(1.0))
    with pytest.raises(KernelError, match=message):
        packed(x)


def test_a_wrong_output_is_an_error():
    packed = pack_gemm(Weights(np.zeros((4, 8), np.float32)))
    with pytest.raises(KernelError, match=r"expected out float32 \(2, 4\)"):
        packed(np.zeros((2, 8), np.float32), out=np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Weights(np.full((2, 4), 8, np.int8), 4), "value 8 at 0 is not among those of 4 bits"),
        (Weights(np.zeros((2, 4), np.int8), 9), "1 to 8 bits"),
        (Weights(np.zeros((2, 4), np.int32), 8), "int8"),
        (Weights(np.zeros((2, 4), np.int8), 8, scales=np.ones(3, np.float32)), "scales do not fit"),
        (Weights(np.zeros((2, 4), np.int8), 8, group_size=3), "3 does not divide 4"),
        (Weights(np.zeros((2, 4, 1), np.int8), 8), "expected weights"),
    ],
)
def test_a_wrong_weight_is_an_error(weights, message):
    with pytest.raises(KernelError, match=message):
        pack_gemm(weights, ActivationCodes(1.0))


def test_an_image_smaller_than_the_kernel_is_an_error():
    geometry = ConvGeometry((5, 5), (1, 1), (0, 0), (1, 1), 1)
    packed = pack_conv(Weights(np.zeros((1, 1, 5, 5), np.float32)), geometry)
    with pytest.raises(KernelError, match="smaller than kernel"):
        packed(np.zeros((4, 9, 1), np.float32))


def test_codes_must_fit_what_the_weights_were_packed_for():
    with pytest.raises(KernelError, match="scale must be positive"):
        ActivationCodes(0.0)
    with pytest.raises(KernelError, match="q_min <= zero_point <= q_max"):
        ActivationCodes(1.0, 300)


def test_an_unknown_instruction_set_is_named():
    with pytest.raises(KernelError, match="'sse9' does not run here"):
        pack_gemm(Weights(np.zeros((1, 1), np.float32)), isa="sse9")
