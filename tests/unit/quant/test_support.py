import pytest

from evoquant.errors import PrecisionError
from evoquant.quant import check_supported, support_problem
from evoquant.types import LayerQuantConfig, OpKind, Role

SHAPE = (64, 48, 3, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weight_scheme": "log2", "weight_bits": 5}, "at most 4 bits, but got 5: .*14 dB.*Use 'uniform'"),
        ({"weight_scheme": "log2", "weight_bits": 1}, "at least 2 bits"),
        ({"weight_scheme": "log2", "weight_bits": 4, "weight_symmetric": False}, "no zero point"),
        ({"weight_scheme": "ternary", "weight_bits": 4}, "'ternary' has weight_bits 2, but got 4"),
        ({"weight_scheme": "binary", "weight_bits": 2}, "'binary' has weight_bits 1, but got 2"),
        ({"weight_scheme": "uniform", "weight_bits": 1}, "at least 2 bits, but got 1. Use 'binary'"),
        ({"weight_scheme": "log2", "weight_bits": 32}, "weight_bits 32 stays in floating point"),
        ({"weight_scheme": "power_of_two", "weight_bits": 32}, "weight_bits 32 stays in floating point"),
        ({"granularity": "per_group", "group_size": 128}, "128 does not divide 432. Use 108 or 144"),
        ({"granularity": "per_group", "group_size": -4}, "-4 does not divide 432"),
        ({"activation_scheme": "binary"}, "'binary' exists for weights only"),
        ({"activation_scheme": "lloyd", "activation_bits": 8}, "has 4 to 7 bits, but got 8"),
        ({"activation_scheme": "lloyd", "activation_bits": 6, "use_symmetric": True}, "use_symmetric is true"),
        ({"weight_scheme": "lloyd"}, "exists for activations only"),
        ({"activation_scheme": "log2", "activation_bits": 4}, "output of a softmax.*role is 'conv'"),
        ({"activation_scheme": "log2", "activation_bits": 32}, "activation_bits 32 stays in floating point"),
    ],
)
def test_refused_for_a_convolution(fields, reason):
    with pytest.raises(PrecisionError, match=reason):
        check_supported(LayerQuantConfig(**fields), OpKind.CONV, Role.CONV, SHAPE)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weight_bits": 4}, "weight_bits must equal activation_bits, but got 4 and 8"),
        ({"weight_scheme": "power_of_two"}, "'uniform' and symmetric, but got 'power_of_two', symmetric"),
        ({"weight_symmetric": False}, "'uniform' and symmetric, but got 'uniform', asymmetric"),
        ({"granularity": "per_group", "group_size": 8}, "no weights to group"),
        ({"activation_scheme": "log2"}, "at most 4 bits, but got 8"),
    ],
)
def test_refused_for_a_matmul(fields, reason):
    with pytest.raises(PrecisionError, match=reason):
        check_supported(LayerQuantConfig(**fields), OpKind.MATMUL, Role.ATTENTION_AV, (1, 3, 197, 64))


@pytest.mark.parametrize(
    ("fields", "kind", "role"),
    [
        ({}, OpKind.CONV, Role.STEM),
        ({"weight_bits": 32, "activation_bits": 32}, OpKind.LINEAR, Role.HEAD),
        ({"weight_bits": 4, "granularity": "per_group", "group_size": 144}, OpKind.CONV, Role.CONV),
        ({"weight_bits": 2, "weight_scheme": "ternary", "activation_bits": 16}, OpKind.LINEAR, Role.MLP_IN),
        ({"activation_scheme": "power_of_two", "activation_bits": 5}, OpKind.LINEAR, Role.MLP_IN),
        ({"weight_bits": 4, "activation_bits": 4, "activation_scheme": "log2"}, OpKind.MATMUL, Role.ATTENTION_AV),
        ({"granularity": "per_channel"}, OpKind.MATMUL, Role.ATTENTION_QK),
    ],
)
def test_accepted(fields, kind, role):
    assert support_problem(LayerQuantConfig(**fields), kind, role, SHAPE) is None
