"""Products that take and give codes of 8 bits instead of real values: the codes that real values would become."""

import numpy as np
import pytest

from evoquant.errors import KernelError
from evoquant.kernels import ActivationCodes, Weights, info, pack_conv, pack_depthwise, pack_gemm
from evoquant.kernels.workload import Precision, random_weights
from evoquant.types import ConvGeometry

pytestmark = pytest.mark.skipif(not info().available, reason="the native module is missing")

INPUT = ActivationCodes.uniform(0.05, 111)
RESULTS = [ActivationCodes.uniform(0.7, 90), ActivationCodes.uneven(0.2, (-90, -31, -7, 0, 4, 30, 61, 140))]
SAME = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
STRIDED = ConvGeometry((3, 3), (2, 2), (1, 1), (1, 1), 37)


def packed(kind, isa, precision="w5a8"):
    rng = np.random.default_rng(0)
    parsed = Precision.parse(precision)
    if kind == "gemm":
        return pack_gemm(random_weights((53, 30), parsed, rng), INPUT, activation="silu", isa=isa), (29, 30)
    if kind == "conv":
        return pack_conv(random_weights((21, 13, 3, 3), parsed, rng), SAME, INPUT, activation="gelu", isa=isa), (
            7,
            9,
            13,
        )
    return pack_depthwise(random_weights((37, 1, 3, 3), parsed, rng), STRIDED, INPUT, isa=isa), (9, 7, 37)


def rounded(values, codes):
    """Codes of real values by the definition of the quantizer."""
    inverse = np.float32(1) / np.float32(codes.scale)
    low, high = codes.q_min - codes.zero_point, codes.q_max - codes.zero_point
    found = np.rint(np.clip(values * inverse, low, high)).astype(int) + codes.zero_point
    levels = np.asarray(codes.levels or range(codes.q_max + 1))
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, found)].astype(np.uint8)


@pytest.mark.parametrize("isa", info().supported)
@pytest.mark.parametrize("kind", ["gemm", "conv", "depthwise"])
@pytest.mark.parametrize("result", RESULTS)
def test_codes_in_and_out_are_those_of_real_values(isa, kind, result):
    product, shape = packed(kind, isa)
    codes = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    real = ((codes.astype(np.int32) - INPUT.zero_point) * np.float32(INPUT.scale)).astype(np.float32)
    expected = product(real)
    np.testing.assert_array_equal(product(codes), expected)
    residual = np.random.default_rng(2).standard_normal(expected.shape).astype(np.float32)
    np.testing.assert_array_equal(product(codes, to=result), rounded(expected, result))
    np.testing.assert_array_equal(product(real, residual=residual, to=result), rounded(expected + residual, result))


def test_what_takes_no_codes_refuses_them():
    codes = np.zeros((4, 8), np.uint8)
    real = pack_gemm(Weights(np.ones((3, 8), np.float32)))
    with pytest.raises(KernelError, match="this handle takes no codes of 8 bits"):
        real(codes)
    grouped = Weights(np.ones((3, 8), np.int8), 4, None, np.ones((3, 2), np.float32), None, 4)
    with pytest.raises(KernelError, match="weights with a scale per group give real values"):
        pack_gemm(grouped, INPUT)(codes, to=RESULTS[0])
    product, _ = packed("gemm", None)
    with pytest.raises(KernelError, match="expected out uint8"):
        product(np.zeros((4, 30), np.uint8), out=np.zeros((4, 53), np.float32), to=RESULTS[0])
