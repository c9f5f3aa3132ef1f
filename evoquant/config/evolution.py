"""The configuration object of ``QuantizationEvolutionEngine``, and what it means for search, space and constraints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from evoquant.config.experiment import ConstraintsSpec, SearchSpec
from evoquant.errors import ConfigurationError, did_you_mean
from evoquant.types.precision import ACTIVATION_BITS, FLOAT_BITS, WEIGHT_BITS
from evoquant.types.target import HardwareTarget

_LOG2_ACTIVATION_BITS = 4
_MIN_OPEN_ACTIVATION_BITS = 8


@dataclass(frozen=True, slots=True)
class EvolutionParts:
    """What a ``QuantizationEvolutionConfig`` says, in the terms of an experiment.

    Attributes:
        search: Budget, rates and population.
        constraints: The three targets, as upper limits.
        space: A search space in the form of a ``search_spaces`` file.
        is_mixed: Whether operations may differ; if not, only plans with one precision for all are candidates.
        device: Name of the device file.
        fitness_weights: Weights of ``fitness_score`` by objective; they rank members of a front that is already found.
        parallel_evaluations: Evaluations in flight.
    """

    search: SearchSpec
    constraints: ConstraintsSpec
    space: dict[str, Any]
    is_mixed: bool
    device: str
    fitness_weights: dict[str, float]
    parallel_evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationEvolutionConfig:
    """Configuration of a quantization evolution.

    Attributes:
        population_size: Members of one generation, at least 2.
        max_generations: Generations, the first population included.
        mutation_rate: Probability that a gene of an offspring changes.
        crossover_rate: Probability that two parents are crossed.
        elitism_ratio: Share of a generation that must survive if it is not dominated. NSGA-II lets parents compete with
            their offspring, so every non-dominated member survives and any ratio is met.
        min_bits: Fewest bits of a weight, 1 (binary) to 16.
        max_bits: Most bits of a weight. Activations may have ``min_bits`` (but at least 4) to ``max_bits`` (but at
            least 8) bits. Stem and head stay at 8 bits.
        allow_mixed_precision: Whether operations may differ in precision.
        allow_per_channel: Whether weights may have one scale for each output channel.
        hardware_target: Family of devices; its default device is meant.
        target_latency_ms: Upper limit of the latency of one image; None: no limit.
        target_memory_mb: Upper limit of weights and peak activations in 10^6 bytes; None: no limit.
        target_energy_mj: Upper limit of the energy of one image; None: no limit.
        accuracy_weight: Weight of accuracy in ``fitness_score``. The four weights rank members of the front that is
            already found; they do not steer the search, and only their proportions matter.
        compression_weight: Weight of compression.
        latency_weight: Weight of latency.
        energy_weight: Weight of energy.
        use_sensitivity_analysis: Whether measured sensitivities order some of the seeds.
        adaptive_bit_allocation: Whether seeds that spend a bit budget by sensitivity join the first population.
        enable_caching: Whether finished evaluations, statistics and latencies are kept and used again.
        parallel_evaluations: Evaluations in flight.

    Raises:
        ConfigurationError: If values are out of range; the message has one line for each.
    """

    population_size: int = 20
    max_generations: int = 50
    mutation_rate: float = 0.2
    crossover_rate: float = 0.7
    elitism_ratio: float = 0.1
    min_bits: int = 4
    max_bits: int = 8
    allow_mixed_precision: bool = True
    allow_per_channel: bool = True
    hardware_target: HardwareTarget = HardwareTarget.ARM_NEON
    target_latency_ms: float | None = None
    target_memory_mb: float | None = None
    target_energy_mj: float | None = None
    accuracy_weight: float = 0.4
    compression_weight: float = 0.3
    latency_weight: float = 0.2
    energy_weight: float = 0.1
    use_sensitivity_analysis: bool = True
    adaptive_bit_allocation: bool = True
    enable_caching: bool = True
    parallel_evaluations: int = 4

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigurationError(problems)
        object.__setattr__(self, "hardware_target", HardwareTarget(self.hardware_target))

    def _problems(self) -> Iterator[str]:
        for field in fields(self):
            problem = _problem(field.name, getattr(self, field.name))
            if problem:
                yield f"{field.name} {problem}, but got {getattr(self, field.name)!r}."
        if self.hardware_target not in list(HardwareTarget):
            names = [target.value for target in HardwareTarget]
            yield f"Unknown hardware_target {self.hardware_target!r}.{did_you_mean(str(self.hardware_target), names)}"
        bits = [value for value in (self.min_bits, self.max_bits) if _is_number(value)]
        if bits == sorted(bits, reverse=True) and len(set(bits)) == 2:
            yield f"min_bits must not exceed max_bits, but got {self.min_bits} and {self.max_bits}."
        weights = (self.accuracy_weight, self.compression_weight, self.latency_weight, self.energy_weight)
        if all(_is_number(weight) and weight == 0 for weight in weights):
            yield "One of accuracy_weight, compression_weight, latency_weight, energy_weight must be positive."

    def parts(self) -> EvolutionParts:
        """The same in the terms of an experiment."""
        return EvolutionParts(
            search=SearchSpec(
                algorithm="nsga2",
                population_size=self.population_size,
                evaluations=self.population_size * self.max_generations,
                crossover_rate=self.crossover_rate,
                mutation_rate=self.mutation_rate,
                sensitivity=self.use_sensitivity_analysis,
            ),
            constraints=ConstraintsSpec(
                latency_ms=self.target_latency_ms, memory_mb=self.target_memory_mb, energy_mj=self.target_energy_mj
            ),
            space=self._space(),
            is_mixed=self.allow_mixed_precision,
            device=self.hardware_target.default_device,
            fitness_weights={
                "accuracy": self.accuracy_weight,
                "compression": self.compression_weight,
                "latency": self.latency_weight,
                "energy": self.energy_weight,
            },
            parallel_evaluations=self.parallel_evaluations,
        )

    def _space(self) -> dict[str, Any]:
        """The space of these bits: uniform formats, ternary and binary where 2 and 1 bits are, log2 after a softmax."""
        most = max(self.max_bits, _MIN_OPEN_ACTIVATION_BITS)
        weights = [
            format_ for bits in WEIGHT_BITS if self.min_bits <= bits <= self.max_bits for format_ in _formats(bits)
        ]
        activations = [f"uniform:{bits}" for bits in ACTIVATION_BITS if self.min_bits <= bits <= most]
        space: dict[str, Any] = {
            "schema_version": 1,
            "description": f"{self.min_bits} to {self.max_bits} bits",
            "default": {
                "weights": weights,
                "activations": activations,
                "granularity": ["per_tensor", "per_channel"] if self.allow_per_channel else ["per_tensor"],
                "calibration": ["minmax", "percentile:99.99", "mse"],
                "symmetric": [False, True],
            },
            "rules": [],
        }
        if self.min_bits <= _LOG2_ACTIVATION_BITS:
            log2 = {"match": {"role": "attention_av"}, "activations": [*activations, f"log2:{_LOG2_ACTIVATION_BITS}"]}
            space["rules"].append(log2)
        if not self.allow_per_channel:
            space["rules"].append({"match": {"role": ["stem", "head"]}, "granularity": ["per_tensor"]})
        return space


def _formats(bits: int) -> tuple[str, ...]:
    return {1: ("binary",), 2: ("uniform:2", "ternary")}.get(bits, (f"uniform:{bits}",))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(name: str, value: object) -> str:
    """What is wrong with one value, or nothing."""
    if name == "hardware_target":
        return ""
    if name.startswith(("allow_", "use_", "adaptive_", "enable_")):
        return "" if isinstance(value, bool) else "must be True or False"
    if name.startswith("target_"):
        is_fine = value is None or (_is_number(value) and 0 < float(value) < float("inf"))  # type: ignore[arg-type]
        return "" if is_fine else "must be a positive number or None"
    if name in ("min_bits", "max_bits"):
        widths = [bits for bits in WEIGHT_BITS if bits != FLOAT_BITS]
        return (
            "" if value in widths and not isinstance(value, bool) else f"must be one of {', '.join(map(str, widths))}"
        )
    if name.endswith(("_rate", "_ratio")):
        is_fine = _is_number(value) and 0 <= float(value) <= 1  # type: ignore[arg-type]
        return "" if is_fine else "must lie in [0, 1]"
    if name.endswith("_weight"):
        is_fine = _is_number(value) and 0 <= float(value) < float("inf")  # type: ignore[arg-type]
        return "" if is_fine else "must be a finite number of at least 0"
    least = 2 if name == "population_size" else 1
    is_fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return "" if is_fine else f"must be a whole number of at least {least}"
