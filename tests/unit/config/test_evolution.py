from __future__ import annotations

import pytest

from evoquant.config import QuantizationEvolutionConfig, validate
from evoquant.config.space import SpaceSpec
from evoquant.errors import ConfigurationError
from evoquant.types.target import HardwareTarget


def test_defaults() -> None:
    config = QuantizationEvolutionConfig()
    assert (config.population_size, config.max_generations, config.mutation_rate) == (20, 50, 0.2)
    assert config.hardware_target is HardwareTarget.ARM_NEON
    parts = config.parts()
    assert parts.search.evaluations == 1000
    assert parts.constraints.limits == {}
    assert parts.fitness_weights == {"accuracy": 0.4, "compression": 0.3, "latency": 0.2, "energy": 0.1}


def test_targets_become_constraints() -> None:
    config = QuantizationEvolutionConfig(target_latency_ms=5, target_memory_mb=1.5, target_energy_mj=0.1)
    assert config.parts().constraints.limits == {"latency_ms": 5.0, "memory_mb": 1.5, "energy_mj": 0.1}


@pytest.mark.parametrize(
    ("least", "most", "weights", "activations"),
    [
        (4, 8, [4, 5, 6, 7, 8], [4, 5, 6, 7, 8]),
        (2, 4, [2, 2, 3, 4], [4, 5, 6, 7, 8]),
        (1, 2, [1, 2, 2], [4, 5, 6, 7, 8]),
        (8, 16, [8, 16], [8, 16]),
        (16, 16, [16], [16]),
    ],
)
def test_bits_become_a_valid_space(least: int, most: int, weights: list[int], activations: list[int]) -> None:
    space = validate(SpaceSpec, QuantizationEvolutionConfig(min_bits=least, max_bits=most).parts().space)
    assert [choice.bits for choice in space.default.weights] == weights
    assert [choice.bits for choice in space.default.activations] == activations
    has_log2 = any(str(choice).startswith("log2") for rule in space.rules for choice in rule.activations or ())
    assert has_log2 == (least <= 4)


def test_without_channels_nothing_has_channels() -> None:
    space = validate(SpaceSpec, QuantizationEvolutionConfig(allow_per_channel=False).parts().space)
    granular = [space.default.granularity, *(rule.granularity for rule in space.rules if rule.granularity)]
    assert {str(choice) for choices in granular for choice in choices} == {"per_tensor"}
    assert any("head" in rule.match.role for rule in space.rules if rule.granularity)


def test_target_by_name_and_device() -> None:
    config = QuantizationEvolutionConfig(hardware_target="intel_vnni", allow_mixed_precision=False)  # type: ignore[arg-type]
    assert config.hardware_target is HardwareTarget.INTEL_VNNI
    assert config.parts().device == HardwareTarget.INTEL_VNNI.default_device
    assert not config.parts().is_mixed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"population_size": 1}, r"population_size must be a whole number of at least 2, but got 1\."),
        ({"max_generations": 2.5}, r"max_generations must be a whole number of at least 1, but got 2\.5\."),
        ({"mutation_rate": 1.1}, r"mutation_rate must lie in \[0, 1\], but got 1\.1\."),
        ({"min_bits": 9}, r"min_bits must be one of 1, 2, .* 16, but got 9\."),
        ({"max_bits": 32}, r"max_bits must be one of 1, 2, .* 16, but got 32\."),
        ({"min_bits": 8, "max_bits": 4}, r"min_bits must not exceed max_bits, but got 8 and 4\."),
        ({"target_latency_ms": 0}, r"target_latency_ms must be a positive number or None, but got 0\."),
        ({"target_memory_mb": float("nan")}, r"target_memory_mb must be a positive number or None, but got nan\."),
        ({"accuracy_weight": -1}, r"accuracy_weight must be a finite number of at least 0, but got -1\."),
        ({"allow_per_channel": 1}, r"allow_per_channel must be True or False, but got 1\."),
        ({"hardware_target": "arm_noen"}, r"Unknown hardware_target 'arm_noen'\. Did you mean 'arm_neon'\?"),
        (
            {"accuracy_weight": 0, "compression_weight": 0, "latency_weight": 0, "energy_weight": 0},
            r"One of accuracy_weight, .* must be positive",
        ),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuantizationEvolutionConfig(**values)  # type: ignore[arg-type]


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigurationError, match="population_size") as info:
        QuantizationEvolutionConfig(population_size=0, elitism_ratio=-1, min_bits=0)
    assert len(info.value.problems) == 3
