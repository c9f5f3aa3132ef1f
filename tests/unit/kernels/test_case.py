"""Cases: what an operation of a network is executed as."""

from dataclasses import replace

import pytest

from evoquant.errors import KernelError
from evoquant.kernels import KernelCase, case_of, conversion_case, float_case
from evoquant.types import ConvGeometry, LayerQuantConfig, Op, OpKind, Role


def linear():
    return Op(
        "blocks.0.fc", OpKind.LINEAR, Role.MLP_IN, "blocks.0", "transformer", "g", "n", ("x",), (1, 197, 192),
        (768, 192), (1, 197, 768), None, (1, 197, 768, 192), 197 * 768 * 192, 768 * 192, True, (), (),
    )  # fmt: skip


def conv(kernel=3, stride=1, groups=1, channels=32, out=64, size=28):
    geometry = ConvGeometry((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), groups)
    return replace(
        linear(), name="stem.conv", kind=OpKind.CONV, role=Role.CONV, input_shape=(1, channels, size, size),
        weight_shape=(out, channels // groups, kernel, kernel), geometry=geometry,
    )  # fmt: skip


def matmul(role):
    return replace(linear(), name="attn.qk", kind=OpKind.MATMUL, role=role, gemm=(3, 197, 197, 64), geometry=None)


def test_geometries():
    config = LayerQuantConfig()
    assert case_of(linear(), config) == KernelCase("gemm", (197, 768, 192), "w8a8")
    assert case_of(conv(kernel=1), config) == KernelCase("gemm", (784, 64, 32), "w8a8")
    assert case_of(conv(kernel=1, stride=2), config).op == "conv"
    assert case_of(conv(), config).shape == (28, 28, 32, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    depthwise = conv(groups=32, out=32)
    assert case_of(depthwise, config).shape == (28, 28, 32, 3, 3, 1, 1, 1, 1, 1, 1)
    assert case_of(matmul(Role.ATTENTION_QK), config).shape == (3, 197, 197, 64, 1)
    assert case_of(matmul(Role.ATTENTION_AV), config).shape[-1] == 0


@pytest.mark.parametrize(
    ("fields", "precision"),
    [
        ({}, "w8a8"),
        ({"weight_bits": 4, "activation_bits": 6}, "w4a6"),
        ({"weight_bits": 32, "activation_bits": 32}, "fp32"),
        ({"weight_bits": 4, "activation_bits": 32}, "fp32"),
        ({"weight_bits": 32, "activation_bits": 8}, "fp32"),
        ({"weight_bits": 16, "activation_bits": 8}, "w16a16"),
        ({"weight_bits": 4, "weight_scheme": "normal"}, "w4a8-normal"),
        ({"weight_bits": 4, "weight_scheme": "log2"}, "w4a8-log2"),
        ({"weight_bits": 4, "weight_scheme": "power_of_two"}, "w4a8"),
        ({"weight_bits": 2, "weight_scheme": "ternary"}, "w2a8-ternary"),
        ({"weight_bits": 1, "weight_scheme": "binary"}, "w1a8-binary"),
        ({"weight_bits": 4, "weight_symmetric": False}, "w5a8"),
        ({"weight_bits": 4, "granularity": "per_group", "group_size": 64}, "w4a8-g64"),
        ({"weight_bits": 4, "granularity": "per_group", "group_size": 192}, "w4a8"),
    ],
)
def test_precisions(fields, precision):
    assert case_of(linear(), LayerQuantConfig(**fields)).precision == precision


def test_settings_without_effect_on_the_time_give_the_same_case():
    depthwise = conv(groups=32, out=32)
    assert case_of(depthwise, LayerQuantConfig(weight_bits=4)) == case_of(depthwise, LayerQuantConfig())
    assert case_of(linear(), LayerQuantConfig(use_symmetric=True)) == case_of(linear(), LayerQuantConfig())
    log2 = LayerQuantConfig(weight_bits=4, activation_bits=4, activation_scheme="log2")
    assert case_of(matmul(Role.ATTENTION_AV), log2).precision == "w4a4-loga"
    lloyd = LayerQuantConfig(weight_bits=6, activation_bits=6, activation_scheme="lloyd")
    assert case_of(matmul(Role.ATTENTION_AV), lloyd).precision == "w6a6-lloyd"
    assert case_of(linear(), lloyd).precision == "w6a6-lloyd"


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        (linear(), {"weight_symmetric": False}, "Op 'blocks.0.fc': 8-bit weights with a zero point"),
        (linear(), {"weight_bits": 4, "granularity": "per_group", "group_size": 50}, "group_size must divide 192"),
        (linear(), {"activation_bits": 4, "activation_scheme": "log2"}, "log2 activations"),
        (matmul(Role.ATTENTION_QK), {"weight_bits": 16, "activation_bits": 16}, "Op 'attn.qk': no kernel"),
    ],
)
def test_a_precision_without_kernel_names_the_operation(op, fields, message):
    with pytest.raises(KernelError, match=message):
        case_of(op, LayerQuantConfig(**fields))


def test_macs():
    assert case_of(linear(), LayerQuantConfig()).macs == 197 * 768 * 192
    assert case_of(conv(stride=2), LayerQuantConfig()).macs == 14 * 14 * 64 * 9 * 32
    assert case_of(conv(groups=32, out=32), LayerQuantConfig()).macs == 28 * 28 * 32 * 9
    assert case_of(matmul(Role.ATTENTION_QK), LayerQuantConfig()).macs == 3 * 197 * 197 * 64
    assert float_case("add", 5).macs == 0


def test_float_operations_and_conversions():
    assert float_case("softmax", 394, columns=197) == KernelCase("softmax", (2, 197))
    assert float_case("silu", 100) == KernelCase("silu", (100,))
    assert conversion_case(9, to_codes=True).op == "quantize"
    with pytest.raises(KernelError, match="No kernel for the operation 'fft'"):
        float_case("fft", 8)
    with pytest.raises(KernelError, match="whole rows"):
        float_case("softmax", 10, columns=3)


def test_a_depthwise_convolution_looks_up_uneven_levels_of_any_number():
    """Widths run alike, but real values become uneven codes by a table."""
    depthwise = conv(groups=32, out=32)
    uneven = [LayerQuantConfig(8, bits, activation_scheme="lloyd") for bits in (4, 6)]
    assert [case_of(depthwise, config).precision for config in uneven] == ["w8a4-lloyd"] * 2
