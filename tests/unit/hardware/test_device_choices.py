import re

import pytest

from evoquant.cli.inspect import GROUND
from evoquant.config import validate
from evoquant.errors import ConfigurationError
from evoquant.hardware import legaliser, load_device
from evoquant.run.barred import device_choices
from evoquant.space import NO_EFFECT, SearchSpace, SpaceSpec

SPEC = validate(
    SpaceSpec,
    {
        "schema_version": 1,
        "default": {
            "weights": ["uniform:4", "uniform:8", "log2:4"],
            "activations": ["uniform:6", "uniform:8"],
            "granularity": ["per_channel", "per_group:24"],
            "symmetric": [False, True],
        },
    },
)


def choices(graph, name):
    device = load_device(name)
    space = SearchSpace.build(SPEC, graph, legal=legaliser(device))
    return device_choices(space, device)


def test_what_the_device_executes_is_available_and_what_it_turns_is_barred_with_the_ground(hybrid):
    found = choices(hybrid, "nvidia_t4")["blocks.0.expand"]
    assert found.available["weights"] == ("uniform:8",)
    assert found.available["activations"] == ("uniform:8",)
    assert found.available["symmetric"] == ("true",)
    assert set(found.barred["weights"]) == {"uniform:4", "log2:4"}
    assert re.match(
        r"weight_bits 4 becomes 8 on NVIDIA T4 .*TensorRT documentation", found.barred["weights"]["uniform:4"]
    )
    assert found.barred["activations"]["uniform:6"].startswith("activation_bits 6 becomes 8")
    assert found.barred["symmetric"]["false"].startswith("use_symmetric False becomes True")
    assert "24 does not divide" in found.barred["granularity"]["per_group:24"]


def test_the_host_bars_nothing_but_what_the_operation_cannot_have(hybrid):
    found = choices(hybrid, "host_avx2")["blocks.0.expand"]
    assert set(found.available["weights"]) == {"uniform:4", "uniform:8", "log2:4"}
    assert found.barred["weights"] == {}
    product = choices(hybrid, "host_avx2")["attn.qk"]
    assert product.available["weights"] == ("uniform:6", "uniform:8")
    assert product.barred["weights"] == {"uniform:4": NO_EFFECT, "log2:4": NO_EFFECT}


def test_the_ground_of_a_reason_is_its_end(hybrid):
    reason = choices(hybrid, "nvidia_t4")["blocks.0.expand"].barred["weights"]["uniform:4"]
    assert GROUND.sub("", reason) == "weight_bits 4 becomes 8 on NVIDIA T4 (Turing, 320 tensor cores)"


def test_a_device_without_int8_leaves_no_choice_and_says_why(hybrid):
    with pytest.raises(ConfigurationError, match=r"Group 'stem' .*cannot execute 'stem' at .*no INT8"):
        choices(hybrid, "jetson_nano")
