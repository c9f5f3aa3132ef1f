"""A quantization strategy with what is known of it, under the names of its public interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from evoquant.errors import PrecisionError
from evoquant.types import FLOAT_BITS, CalibrationMethod, LayerQuantConfig, QuantizationScheme

_STEPS = (4, 5, 6, 7, 8)
_MATMUL_SUFFIXES = (".qk", ".av", ".matmul")
_METRICS = ("accuracy", "inference_latency_ms", "memory_footprint_mb", "energy_per_inference_mj", "stored_bytes")


@dataclass(frozen=True, slots=True)
class FitnessWeights:
    """Importance of each metric in ``fitness_score``, and the cost that halves the score of a cost metric.

    Attributes:
        accuracy: Weight of accuracy.
        compression: Weight of compression.
        latency: Weight of latency.
        energy: Weight of energy.
        latency_scale_ms: A latency of this scores one half.
        energy_scale_mj: An energy of this scores one half.
    """

    accuracy: float = 0.4
    compression: float = 0.3
    latency: float = 0.2
    energy: float = 0.1
    latency_scale_ms: float = 10.0
    energy_scale_mj: float = 10.0


@dataclass(frozen=True, slots=True)
class QuantizationGenome:
    """The precision of every layer, and its metrics once they are measured.

    Attributes:
        layer_configs: Precision by layer name.
        global_scheme: Scheme of layers that are added without one of their own.
        calibration_method: Their calibration.
        accuracy: Top-1 in [0, 1]; None until evaluated, as all metrics.
        inference_latency_ms: Time of one image.
        memory_footprint_mb: Packed weights and peak activations.
        energy_per_inference_mj: Energy of one image.
        stored_bytes: Packed weights with their scales.
        weight_counts: Number of weights by layer, where known; 0 for a matmul of activations.
        fitness_weights: How ``fitness_score`` weighs the metrics.
    """

    layer_configs: Mapping[str, LayerQuantConfig]
    global_scheme: QuantizationScheme = QuantizationScheme.UNIFORM
    calibration_method: CalibrationMethod = CalibrationMethod.MSE
    accuracy: float | None = None
    inference_latency_ms: float | None = None
    memory_footprint_mb: float | None = None
    energy_per_inference_mj: float | None = None
    stored_bytes: int | None = None
    weight_counts: Mapping[str, int] = field(default_factory=dict)
    fitness_weights: FitnessWeights = FitnessWeights()

    def __post_init__(self) -> None:
        if not self.layer_configs:
            raise PrecisionError("A genome needs the precision of at least one layer.")
        object.__setattr__(self, "global_scheme", QuantizationScheme(self.global_scheme))
        object.__setattr__(self, "calibration_method", CalibrationMethod(self.calibration_method))

    @property
    def average_bits(self) -> float:
        """Mean bits of a weight; where the numbers of weights are unknown, mean weight bits of a layer."""
        counts = {name: self.weight_counts.get(name, 0) for name in self.layer_configs}
        if not any(counts.values()):
            counts = dict.fromkeys(counts, 1)
        bits = math.fsum(self.layer_configs[name].weight_bits * count for name, count in counts.items())
        return bits / sum(counts.values())

    @property
    def compression_ratio(self) -> float:
        """Size of the weights in 32-bit floating point over their stored size.

        Where the stored size is unknown, 32 over ``average_bits``, which leaves out the scales.
        """
        weights = sum(self.weight_counts.values())
        if self.stored_bytes and weights:
            return weights * FLOAT_BITS / 8 / self.stored_bytes
        return FLOAT_BITS / self.average_bits

    @property
    def fitness_score(self) -> float:
        """Weighted score in [0, sum of weights], more is better; what is not measured adds nothing.

        It ranks members of a front that is already found. With a cost c and its scale s, the score of the cost is
        s / (s + c); that of compression is 1 - 1 / ratio.
        """
        weights = self.fitness_weights
        return math.fsum(
            (
                weights.accuracy * (self.accuracy or 0.0),
                weights.compression * max(0.0, 1.0 - 1.0 / self.compression_ratio),
                weights.latency * _cost_score(self.inference_latency_ms, weights.latency_scale_ms),
                weights.energy * _cost_score(self.energy_per_inference_mj, weights.energy_scale_mj),
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, derived figures included for the reader."""
        return {
            "layer_configs": {name: _plain(config.to_dict()) for name, config in self.layer_configs.items()},
            "global_scheme": self.global_scheme.value,
            "calibration_method": self.calibration_method.value,
            **{name: getattr(self, name) for name in _METRICS},
            "weight_counts": dict(self.weight_counts),
            "fitness_weights": {item.name: getattr(self.fitness_weights, item.name) for item in fields(FitnessWeights)},
            "average_bits": self.average_bits,
            "compression_ratio": self.compression_ratio,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; derived figures are computed anew.

        Raises:
            PrecisionError: If a key is unknown or a precision cannot be read.
        """
        given = {key: value for key, value in data.items() if key not in ("average_bits", "compression_ratio")}
        unknown = set(given) - {item.name for item in fields(cls)}
        if unknown or "layer_configs" not in given:
            raise PrecisionError(
                f"Expected a genome with 'layer_configs', but got the keys {', '.join(sorted(map(str, data)))}."
            )
        configs = {name: LayerQuantConfig.from_dict(config) for name, config in given.pop("layer_configs").items()}
        if "fitness_weights" in given:
            given["fitness_weights"] = FitnessWeights(**given["fitness_weights"])
        return cls(layer_configs=configs, **given)

    def clone(self) -> Self:
        """An equal genome that shares no container with this one."""
        return replace(self, layer_configs=dict(self.layer_configs), weight_counts=dict(self.weight_counts))

    def mutate(self, mutation_rate: float = 0.2, *, rng: np.random.Generator) -> Self:
        """A copy without metrics in which some layers have their bits one step up or down.

        Weights and activations move between 4 and 8 bits, log2 ones and what stays in floating point keep theirs; in a
        matmul of activations both operands keep the same bits.

        Args:
            mutation_rate: Probability that a layer changes.
            rng: Source of randomness.
        """
        configs = {
            name: _stepped(name, config, rng) if rng.random() < mutation_rate else config
            for name, config in self.layer_configs.items()
        }
        return self._unmeasured(configs)

    def crossover(self, other: Self, *, rng: np.random.Generator) -> Self:
        """A genome without metrics that takes each layer from either parent by the toss of a coin.

        Raises:
            PrecisionError: If the parents have different layers.
        """
        if set(self.layer_configs) != set(other.layer_configs):
            raise PrecisionError("Genomes of different layers cannot be crossed.")
        configs = {
            name: config if rng.random() < 0.5 else other.layer_configs[name]
            for name, config in self.layer_configs.items()
        }
        return self._unmeasured(configs)

    def _unmeasured(self, configs: Mapping[str, LayerQuantConfig]) -> Self:
        return replace(
            self.clone(),
            layer_configs=configs,
            accuracy=None,
            inference_latency_ms=None,
            memory_footprint_mb=None,
            energy_per_inference_mj=None,
            stored_bytes=None,
        )


def _cost_score(cost: float | None, scale: float) -> float:
    return 0.0 if cost is None else scale / (scale + cost)


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: getattr(value, "value", value) for key, value in data.items()}


def _stepped(name: str, config: LayerQuantConfig, rng: np.random.Generator) -> LayerQuantConfig:
    is_matmul = name.endswith(_MATMUL_SUFFIXES)
    can_step_weights = not is_matmul and _can_step(config.weight_scheme, config.weight_bits)
    can_step_activations = _can_step(config.activation_scheme, config.activation_bits)
    if not (can_step_weights or can_step_activations):
        return config
    if can_step_weights and (not can_step_activations or rng.random() < 0.5):
        return replace(config, weight_bits=_neighbour(config.weight_bits, rng))
    bits = _neighbour(config.activation_bits, rng)
    return replace(config, activation_bits=bits, weight_bits=bits if is_matmul else config.weight_bits)


def _neighbour(bits: int, rng: np.random.Generator) -> int:
    position = _STEPS.index(bits)
    if position in (0, len(_STEPS) - 1):
        return _STEPS[1] if position == 0 else _STEPS[-2]
    return _STEPS[position + int(rng.choice((-1, 1)))]


def _can_step(scheme: QuantizationScheme, bits: int) -> bool:
    return bits in _STEPS and scheme in (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)
