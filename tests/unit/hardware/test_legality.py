import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoquant.errors import HardwareError
from evoquant.hardware import choices, device_names, legalise, legaliser, load_device
from evoquant.space.legality import canonical
from evoquant.types import LayerQuantConfig, OpKind
from evoquant.types.precision import ACTIVATION_BITS, FLOAT, WEIGHT_BITS
from evoquant.types.support import support_problem

DEVICES = {name: load_device(name) for name in device_names()}
INTEGER = [name for name, device in DEVICES.items() if device.refuses_quantized is None]
TENSORRT = ["jetson_agx_orin", "nvidia_t4", "rtx_3080"]
NEURAL_ENGINE = ["apple_m1", "apple_a17_pro"]


@st.composite
def configs(draw):
    granularity = draw(st.sampled_from(["per_tensor", "per_channel", "per_group"]))
    return LayerQuantConfig(
        weight_bits=draw(st.sampled_from(WEIGHT_BITS)),
        activation_bits=draw(st.sampled_from(ACTIVATION_BITS)),
        weight_scheme=draw(st.sampled_from(["uniform", "power_of_two", "normal", "log2", "ternary", "binary"])),
        activation_scheme=draw(st.sampled_from(["uniform", "power_of_two", "log2", "lloyd"])),
        granularity=granularity,
        use_symmetric=draw(st.booleans()),
        weight_symmetric=draw(st.booleans()),
        group_size=draw(st.sampled_from([4, 8, 16, 64])) if granularity == "per_group" else None,
    )


def valid(op, config):
    config = canonical(op, config)
    return support_problem(config, op.kind, op.role, op.weight_shape) is None


@settings(max_examples=150, deadline=None)
@given(config=configs(), data=st.data())
def test_legal_configurations_are_canonical_fixed_points_of_no_fewer_bits(hybrid, config, data):
    device = DEVICES[data.draw(st.sampled_from(sorted(DEVICES)))]
    op = data.draw(st.sampled_from(hybrid.ops))
    try:
        legal = legalise(op, config, device)
    except HardwareError:
        return
    again = legalise(op, legal.config, device)
    assert again.config == legal.config
    assert again.reasons == ()
    assert again.executed == legal.executed
    assert canonical(op, legal.config) == legal.config
    assert legal.config.activation_bits >= config.activation_bits
    assert op.kind is OpKind.MATMUL or legal.config.weight_bits >= config.weight_bits
    assert bool(legal.reasons) == (legal.config != canonical(op, config))
    if valid(op, config):
        assert valid(op, legal.config)


@settings(max_examples=60, deadline=None)
@given(config=configs(), data=st.data())
def test_targets_keep_their_rules(hybrid, config, data):
    op = data.draw(st.sampled_from(hybrid.ops))
    for name in TENSORRT:
        legal = legalise(op, config, DEVICES[name]).config
        assert legal.is_float or legal.activation_bits == 32 or legal.use_symmetric
        assert legal.weight_symmetric
        assert legal.weight_scheme in ("uniform", "power_of_two")
        assert legal.weight_bits in (4, 8, 32)
        assert legal.weight_bits != 4 or op.kind is OpKind.LINEAR
    for name in NEURAL_ENGINE:
        assert legalise(op, config, DEVICES[name]).config.weight_symmetric
    for name in ("xeon_vnni", "client_avx_vnni"):
        legal = legalise(op, config, DEVICES[name])
        assert legal.config.weight_symmetric
        assert legal.executed.name in ("w8a8", "fp32")


@pytest.mark.parametrize("name", ["jetson_nano", "jetson_tx2"])
def test_int8_is_refused_where_there_is_none(hybrid, name):
    device, op = DEVICES[name], hybrid.ops[1]
    with pytest.raises(HardwareError, match=r"cannot execute 'blocks\.0\.expand' at W8A8: .*no INT8"):
        legalise(op, LayerQuantConfig(), device)
    assert legalise(op, FLOAT, device).executed.name == "fp16"
    told = legaliser(device)(op, LayerQuantConfig())
    assert isinstance(told, str)
    assert "no INT8" in told


@pytest.mark.parametrize(
    ("device", "asked", "stored", "executed"),
    [
        ("raspberry_pi_4", {"weight_bits": 4}, "W4A8", "w8a8"),
        ("raspberry_pi_5", {"weight_bits": 4, "activation_bits": 4}, "W4A8", "w8a8"),
        ("xeon_vnni", {"weight_bits": 4, "weight_scheme": "log2"}, "W4A8-log2", "w8a8"),
        ("host_cpu", {"weight_bits": 4}, "W4A8", "w4a8"),
        ("host_cpu", {"weight_bits": 3}, "W3A8", "w4a8"),
        ("host_cpu", {"weight_bits": 7}, "W7A8", "w7a8"),
        ("nvidia_t4", {"weight_bits": 4}, "W8A8", "w8a8"),
        ("nvidia_t4", {"weight_bits": 2, "weight_scheme": "ternary"}, "W8A8", "w8a8"),
        ("snapdragon_8_gen_3", {"weight_bits": 4}, "W4A8", "w8a8"),
        ("snapdragon_8_gen_3", {"weight_bits": 8, "activation_bits": 16}, "W8A16", "w8a16"),
        ("apple_m1", {}, "W8A8", "fp16"),
        ("apple_a17_pro", {}, "W8A8", "w8a8"),
        ("apple_m1", {"weight_bits": 4, "activation_bits": 32}, "W4A32", "fp16"),
        ("edge_tpu", {"weight_bits": 4, "activation_bits": 4}, "W8A8", "w8a8"),
    ],
)
def test_what_a_pointwise_convolution_becomes(hybrid, device, asked, stored, executed):
    legal = legalise(hybrid.op["blocks.0.expand"], LayerQuantConfig(**asked), DEVICES[device])
    assert (legal.config.label, legal.executed.name) == (stored, executed)


def test_reasons_name_field_values_device_and_ground(hybrid):
    legal = legalise(hybrid.ops[1], LayerQuantConfig(weight_bits=4), DEVICES["nvidia_t4"])
    assert any(
        reason.startswith("weight_bits 4 becomes 8 on NVIDIA T4") and "TensorRT documentation" in reason
        for reason in legal.reasons
    )


def test_groups_of_weights_where_the_device_has_them(builder):
    b = builder((16, 256))
    b.linear("fc", "image", 64)
    op = b.build().ops[0]
    asked = LayerQuantConfig(weight_bits=4, activation_bits=32, granularity="per_group", group_size=100)
    legal = legalise(op, asked, DEVICES["nvidia_t4"]).config
    assert (legal.label, legal.group_size) == ("W4A32", 64)
    assert legalise(op, LayerQuantConfig(granularity="per_group", group_size=64), DEVICES["nvidia_t4"]).config == (
        LayerQuantConfig(granularity="per_channel", use_symmetric=True)
    )


def test_an_operation_that_has_no_form_is_named(hybrid):
    with pytest.raises(HardwareError, match=r"Coral Edge TPU cannot execute 'stem' \(conv2d\) at FP32: it stores w8a8"):
        legalise(hybrid.op["stem"], FLOAT, DEVICES["edge_tpu"])


def test_choices_separate_what_runs_as_it_is(hybrid):
    asked = [LayerQuantConfig(weight_bits=bits, use_symmetric=True) for bits in (4, 6, 8)]
    found = choices(hybrid.ops[1], asked, DEVICES["nvidia_t4"])
    assert found.legal == (asked[2],)
    assert [config.weight_bits for config, _ in found.barred] == [4, 6]
    assert all("becomes 8" in reason for _, reason in found.barred)
    none = choices(hybrid.ops[1], asked, DEVICES["jetson_nano"])
    assert none.legal == ()
    assert len(none.barred) == 3
