"""Stored weights: what is packed is what the simulation multiplies, in as few bytes as promised."""

import numpy as np
import pytest
import torch

from evoquant.deploy.weights import StoredWeight
from evoquant.errors import ModelError
from evoquant.evaluate.native_quantizer import activation_codes
from evoquant.kernels import ActivationCodes
from evoquant.quant import QuantParams, fake_quantize, weight_params
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme

PRECISIONS = {
    "w8": {"weight_bits": 8},
    "w5": {"weight_bits": 5},
    "w4": {"weight_bits": 4},
    "w4 affine": {"weight_bits": 4, "weight_symmetric": False},
    "w8 affine": {"weight_bits": 8, "weight_symmetric": False},
    "w4 groups": {"weight_bits": 4, "granularity": "per_group", "group_size": 16},
    "w4 normal": {"weight_bits": 4, "weight_scheme": QuantizationScheme.NORMAL},
    "w4 log2": {"weight_bits": 4, "weight_scheme": QuantizationScheme.LOG2},
    "w4 power of two": {"weight_bits": 4, "weight_scheme": QuantizationScheme.POWER_OF_TWO},
    "ternary": {"weight_bits": 2, "weight_scheme": QuantizationScheme.TERNARY},
    "binary": {"weight_bits": 1, "weight_scheme": QuantizationScheme.BINARY},
    "w16": {"weight_bits": 16, "activation_bits": 16},
    "tensor": {"weight_bits": 6, "granularity": QuantizationGranularity.PER_TENSOR},
}
EIGHT_BITS = ActivationCodes.uniform(0.05, 100, bits=8)


def stored(precision, shape=(12, 32)):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    config = LayerQuantConfig(**precision)
    params = weight_params(weight, config)
    quantized = fake_quantize(weight, params)
    return StoredWeight.quantized(quantized, config, params), quantized


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_stored_stands_for_the_quantized_weight(name):
    weight, quantized = stored(PRECISIONS[name])
    np.testing.assert_array_equal(weight.real(), quantized.numpy())


@pytest.mark.parametrize("name", PRECISIONS)
def test_kernels_multiply_the_same_values(name):
    weight, quantized = stored(PRECISIONS[name])
    given, is_integer = weight.for_kernel(None, EIGHT_BITS)
    assert is_integer == (name not in ("w16", "w8 affine")), name
    if not is_integer:
        np.testing.assert_array_equal(given.values, quantized.numpy())
        return
    scales = given.scales if given.scales.ndim == 2 else given.scales[:, None]
    values = given.values.astype(np.float32).reshape(12, scales.shape[1], -1) * scales[:, :, None]
    np.testing.assert_allclose(values.reshape(12, 32), quantized.numpy(), rtol=2e-7)
    if given.codebook is not None:
        assert set(np.unique(given.values)) <= set(given.codebook)


def test_wide_activations_take_real_weights():
    weight, quantized = stored(PRECISIONS["w8"])
    for codes in (None, ActivationCodes.uniform(0.01, 0, bits=16, is_symmetric=True)):
        given, is_integer = weight.for_kernel(None, codes)
        assert not is_integer
        np.testing.assert_array_equal(given.values, quantized.numpy())


def test_a_floating_point_weight_stays_as_it_is():
    values = torch.randn(3, 4)
    weight = StoredWeight.quantized(values, LayerQuantConfig(weight_bits=32, activation_bits=32), None)
    assert weight.is_float
    assert weight.stored_bytes == 48
    np.testing.assert_array_equal(weight.real(), values.numpy())


def test_values_beside_the_grid_are_refused():
    config = LayerQuantConfig(weight_bits=4)
    values = torch.randn(4, 8)
    with pytest.raises(ModelError, match="beside the grid"):
        StoredWeight.quantized(values, config, weight_params(values, config))


def test_scales_that_do_not_fit_are_refused():
    weight, _ = stored(PRECISIONS["w4"])
    broken = StoredWeight(weight.shape, weight.config, {**weight.tensors, "scale": torch.ones(5)})
    with pytest.raises(ModelError, match="Expected 12 scales for a weight of W4A8, but got 5"):
        broken.real()


def test_log2_codes_keep_their_levels():
    params = QuantParams(
        QuantizationScheme.LOG2, 4, torch.tensor(0.75), torch.tensor(0, dtype=torch.int32), 0, 15, None
    )
    assert activation_codes(params) == ActivationCodes.log2(0.75, bits=4)
