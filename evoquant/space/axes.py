"""The five axes of a gene, and which values of them a group of operations may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any

from evoquant.config.choices import CalibrationChoice, GranularityChoice, SchemeBits
from evoquant.config.space import CHOICE_FIELDS, Match, SpaceSpec
from evoquant.errors import ConfigurationError
from evoquant.types import (
    CalibrationMethod,
    Group,
    LayerQuantConfig,
    Op,
    QuantizationGranularity,
    QuantizationScheme,
)


class Axis(IntEnum):
    """Position of a choice in the gene of a group."""

    WEIGHT = 0
    ACTIVATION = 1
    GRANULARITY = 2
    CALIBRATION = 3
    SYMMETRY = 4


N_AXES = len(Axis)

_SCHEMES = (
    QuantizationScheme.BINARY,
    QuantizationScheme.TERNARY,
    QuantizationScheme.LOG2,
    QuantizationScheme.POWER_OF_TWO,
    QuantizationScheme.UNIFORM,
    QuantizationScheme.NORMAL,
    QuantizationScheme.LLOYD,
)
_METHODS = tuple(CalibrationMethod)
_GRANULARITIES = (
    QuantizationGranularity.PER_TENSOR,
    QuantizationGranularity.PER_CHANNEL,
    QuantizationGranularity.PER_GROUP,
)


@dataclass(frozen=True, slots=True)
class GroupAxes:
    """Ordered values of each axis for one group: a gene is one index into each.

    Attributes:
        weights: Number formats of weights, fewest bits first.
        activations: Number formats of activations, fewest bits first.
        granularities: Sharing of weight scales, coarsest first.
        calibrations: How clipping ranges are set.
        symmetries: Whether activations have no zero point.
    """

    weights: tuple[SchemeBits, ...]
    activations: tuple[SchemeBits, ...]
    granularities: tuple[GranularityChoice, ...]
    calibrations: tuple[CalibrationChoice, ...]
    symmetries: tuple[bool, ...]

    @property
    def values(self) -> tuple[tuple[Any, ...], ...]:
        """The values of all axes in the order of ``Axis``."""
        return (self.weights, self.activations, self.granularities, self.calibrations, self.symmetries)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values on each axis."""
        return tuple(len(values) for values in self.values)

    def requested(self, gene: Sequence[int]) -> LayerQuantConfig:
        """The precision that one gene (five indices) asks for, before any legality."""
        weight, activation = self.weights[gene[Axis.WEIGHT]], self.activations[gene[Axis.ACTIVATION]]
        sharing, calibration = self.granularities[gene[Axis.GRANULARITY]], self.calibrations[gene[Axis.CALIBRATION]]
        return LayerQuantConfig(
            weight_bits=weight.bits,
            weight_scheme=weight.scheme,
            activation_bits=activation.bits,
            activation_scheme=activation.scheme,
            granularity=sharing.granularity,
            group_size=sharing.group_size,
            calibration_method=calibration.method,
            percentile=calibration.percentile,
            use_symmetric=self.symmetries[gene[Axis.SYMMETRY]],
        )


def group_axes(spec: SpaceSpec, group: Group, ops: Sequence[Op]) -> GroupAxes:
    """The axes of a group: what the rules allow to every one of its operations.

    Raises:
        ConfigurationError: If the rules for the operations of the group have no value in common.
    """
    allowed = [_choices_for(spec, op) for op in ops]
    common: dict[str, tuple[Any, ...]] = {}
    for field in CHOICE_FIELDS:
        common[field] = tuple(value for value in allowed[0][field] if all(value in other[field] for other in allowed))
        if not common[field]:
            sets = "; ".join(f"{op.name}: {_listed(own[field])}" for op, own in zip(ops, allowed, strict=True))
            raise ConfigurationError(
                f"Group '{group.name}': its operations obey one gene, but the rules leave them no common {field} "
                f"({sets})."
            )
    return GroupAxes(
        weights=tuple(sorted(common["weights"], key=_format_order)),
        activations=tuple(sorted(common["activations"], key=_format_order)),
        granularities=tuple(sorted(common["granularity"], key=_granularity_order)),
        calibrations=tuple(sorted(common["calibration"], key=_calibration_order)),
        symmetries=tuple(sorted(common["symmetric"])),
    )


def _choices_for(spec: SpaceSpec, op: Op) -> dict[str, tuple[Any, ...]]:
    choices = {field: getattr(spec.default, field) for field in CHOICE_FIELDS}
    for rule in spec.all_rules:
        if matches(rule.match, op):
            choices |= {field: getattr(rule, field) for field in CHOICE_FIELDS if getattr(rule, field) is not None}
    return choices


def matches(match: Match, op: Op) -> bool:
    """Whether a rule with this ``match`` is for this operation."""
    pairs = (
        (match.role, op.role.value),
        (match.block_kind, op.block_kind),
        (match.kind, op.kind.value),
        (match.name, op.name),
    )
    return all(not patterns or any(fnmatchcase(value, pattern) for pattern in patterns) for patterns, value in pairs)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _format_order(choice: SchemeBits) -> tuple[int, int]:
    return choice.bits, _SCHEMES.index(choice.scheme)


def _granularity_order(choice: GranularityChoice) -> tuple[int, int]:
    return _GRANULARITIES.index(choice.granularity), -(choice.group_size or 0)


def _calibration_order(choice: CalibrationChoice) -> tuple[int, float]:
    return _METHODS.index(choice.method), choice.percentile
