"""The attention kernel against its parts, and what it refuses."""

import numpy as np
import pytest

from evoquant.errors import KernelError
from evoquant.kernels import ActivationCodes, Attention, KernelCase, Matmul, info
from evoquant.kernels.native import native
from evoquant.kernels.workload import workload

pytestmark = pytest.mark.skipif(not info().available, reason="the native module is missing")

SOFTMAX_CODES = {
    "u8": ActivationCodes.uniform(1 / 255, 0),
    "u4": ActivationCodes.uniform(1 / 15, 0, bits=4),
    "log2": ActivationCodes.log2(1.0, bits=4),
    "uneven": ActivationCodes.uneven(1 / 255, (0, 1, 2, 4, 7, 12, 20, 33, 55, 91, 150, 255)),
}


def operands(rng, heads=3, m=37, n=50, k=24, d=17):
    q = rng.standard_normal((1, heads, m, k), np.float32)
    keys = rng.standard_normal((1, heads, n, k), np.float32).transpose(0, 1, 3, 2)
    return q, keys, rng.standard_normal((1, heads, n, d), np.float32)


def apart(scores, weighted, q, keys, v, isa):
    found = scores(q, keys)
    rows = found.reshape(-1, found.shape[-1])
    native().softmax(native_number(isa), rows, rows, 1)
    return weighted(found, v)


def native_number(isa):
    module = native()
    return next(number for number in range(module.ISA_COUNT) if module.isa_name(number) == isa)


@pytest.mark.parametrize("isa", info().supported)
@pytest.mark.parametrize("codes", SOFTMAX_CODES)
def test_it_gives_the_numbers_of_its_parts(isa, codes):
    rng = np.random.default_rng(0)
    scores = Matmul(ActivationCodes.uniform(0.03, 128), b_scale=0.02, factor=0.25, isa=isa)
    weighted = Matmul(SOFTMAX_CODES[codes], b_scale=[0.02, 0.021, 0.03], isa=isa)
    q, keys, v = operands(rng)
    expected = apart(scores, weighted, q, keys, v, isa)
    np.testing.assert_array_equal(Attention(scores, weighted)(q, keys, v), expected)


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (False, False)])
def test_each_product_may_stay_real(first, second):
    rng = np.random.default_rng(1)
    codes = ActivationCodes.uniform(0.03, 128)
    scores = Matmul(codes if first else None, b_scale=0.02)
    weighted = Matmul(SOFTMAX_CODES["u8"] if second else None, b_scale=0.02)
    q, keys, v = operands(rng, m=5, n=300)
    expected = apart(scores, weighted, q, keys, v, scores.isa)
    np.testing.assert_array_equal(Attention(scores, weighted)(q, keys, v), expected)


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(2)
    q, keys, v = operands(rng)
    attention = Attention(Matmul(), Matmul())
    with pytest.raises(KernelError, match=r"expected v float32 \(1, 3, 50, \*\)"):
        attention(q, keys, v[:, :, :-1])
    with pytest.raises(KernelError, match="attention: expected k float32"):
        attention(q, keys.astype(np.float64), v)
    with pytest.raises(KernelError, match="b_scales must be one, or one per head"):
        Attention(Matmul(), Matmul(SOFTMAX_CODES["u8"], b_scale=[0.1, 0.2]))(q, keys, v)
    if len(info().supported) > 1:
        with pytest.raises(KernelError, match="expected one instruction set"):
            Attention(Matmul(isa="reference"), Matmul(isa=info().supported[-1]))


@pytest.mark.parametrize("op", ["matmul+softmax", "softmax+matmul"])
def test_its_parts_are_timed(op):
    run = workload(KernelCase(op, (2, 9, 8, 4, 1), "w8a8"), np.random.default_rng(0))
    assert run(2) > 0


@pytest.mark.parametrize("isa", info().supported)
@pytest.mark.parametrize("codes", SOFTMAX_CODES)
def test_relative_rows_are_exponentials_whose_sum_divides_the_result(isa, codes):
    rng = np.random.default_rng(3)
    scores = Matmul(ActivationCodes.uniform(0.03, 128), b_scale=0.02, isa=isa)
    weighted = Matmul(SOFTMAX_CODES[codes], b_scale=[0.02, 0.021, 0.03], isa=isa)
    q, keys, v = operands(rng)
    found = scores(q, keys)
    exponentials = np.exp(found - found.max(-1, keepdims=True))
    expected = weighted(exponentials, v) / exponentials.sum(-1, keepdims=True)
    given = Attention(scores, weighted, relative=True)(q, keys, v)
    # A rounding of the exponential may move a weight across the middle between two codes.
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=0.03)
    assert np.isclose(given, expected, rtol=1e-4, atol=1e-5).mean() > 0.9


def test_relative_rows_that_stay_real_change_nothing():
    q, keys, v = operands(np.random.default_rng(4), m=33, n=301)
    plain, relative = (Attention(Matmul(), Matmul(), relative=is_relative)(q, keys, v) for is_relative in (False, True))
    np.testing.assert_allclose(relative, plain, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(relative, plain)
