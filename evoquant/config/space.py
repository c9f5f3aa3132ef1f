"""The shape of a search-space file: which precisions each part of a network may take."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from evoquant.config.choices import CalibrationChoice, GranularityChoice, SchemeBits
from evoquant.errors import PrecisionError, did_you_mean
from evoquant.types import CalibrationMethod, OpKind, QuantizationGranularity, QuantizationScheme, Role
from evoquant.types.precision import ACTIVATION_BITS, LLOYD_BITS, MAX_LOG2_BITS, WEIGHT_BITS
from evoquant.types.support import FIXED_BITS


def _weight(value: object) -> SchemeBits:
    choice = SchemeBits.parse(value)
    _check_bits("weights", choice, WEIGHT_BITS)
    if choice.scheme is QuantizationScheme.LLOYD:
        raise PrecisionError(f"Weights cannot be {choice}; lloyd levels are for activations.")
    if choice.bits == 1 and choice.scheme is not QuantizationScheme.BINARY:
        raise PrecisionError(f"Weights of one bit are 'binary', but got '{choice}'.")
    return choice


def _activation(value: object) -> SchemeBits:
    choice = SchemeBits.parse(value)
    if choice.scheme in FIXED_BITS:
        raise PrecisionError(f"Activations cannot be {choice}; use uniform, power_of_two, log2, lloyd or float.")
    _check_bits("activations", choice, ACTIVATION_BITS)
    return choice


def _check_bits(side: str, choice: SchemeBits, supported: Sequence[int]) -> None:
    if choice.bits not in supported:
        raise PrecisionError(f"Bits of {side} must be one of {', '.join(map(str, supported))}, but got '{choice}'.")
    if choice.scheme is QuantizationScheme.LOG2 and choice.bits > MAX_LOG2_BITS:
        raise PrecisionError(f"log2 has at most {MAX_LOG2_BITS} bits, but got '{choice}'.")
    if choice.scheme is QuantizationScheme.LLOYD and choice.bits not in LLOYD_BITS:
        raise PrecisionError(f"lloyd has {LLOYD_BITS[0]} to {LLOYD_BITS[-1]} bits, but got '{choice}'.")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_patterns(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


_short = PlainSerializer(lambda choices: None if choices is None else [str(choice) for choice in choices])
_listed = BeforeValidator(_as_tuple)
_filled = Field(min_length=1)
Weights = Annotated[tuple[Annotated[SchemeBits, BeforeValidator(_weight)], ...], _listed, _short, _filled]
Activations = Annotated[tuple[Annotated[SchemeBits, BeforeValidator(_activation)], ...], _listed, _short, _filled]
Granularities = Annotated[
    tuple[Annotated[GranularityChoice, BeforeValidator(GranularityChoice.parse)], ...], _listed, _short, _filled
]
Calibrations = Annotated[
    tuple[Annotated[CalibrationChoice, BeforeValidator(CalibrationChoice.parse)], ...], _listed, _short, _filled
]
Symmetries = Annotated[tuple[bool, ...], _listed, _filled]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_patterns)]

CHOICE_FIELDS = ("weights", "activations", "granularity", "calibration", "symmetric")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def _refuse_repeats(choices: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if choices is not None and len(set(choices)) < len(choices):
        repeated = sorted({str(choice) for choice in choices if choices.count(choice) > 1})
        raise PrecisionError(f"Each choice may be listed once, but {', '.join(repeated)} is repeated.")
    return choices


class DefaultChoices(_Strict):
    """What an operation may be where no rule says otherwise.

    Attributes:
        weights: Number formats of weights.
        activations: Number formats of input activations.
        granularity: Sharing of weight scales.
        calibration: How clipping ranges are set.
        symmetric: Whether input activations have no zero point.
    """

    weights: Weights
    activations: Activations
    granularity: Granularities = (GranularityChoice(QuantizationGranularity.PER_CHANNEL),)
    calibration: Calibrations = (CalibrationChoice(CalibrationMethod.FISHER),)
    symmetric: Symmetries = (False,)

    _unique = field_validator(*CHOICE_FIELDS)(_refuse_repeats)


class Match(_Strict):
    """Which operations a rule is for: all given fields must match, each with one of its glob patterns.

    Attributes:
        role: Patterns of roles, such as ``attention*``.
        block_kind: Patterns of kinds of block, such as ``transformer``.
        kind: Patterns of kinds of operation: ``conv2d``, ``linear``, ``matmul``.
        name: Patterns of operation names, such as ``stages.4.*``.
    """

    role: Patterns = ()
    block_kind: Patterns = ()
    kind: Patterns = ()
    name: Patterns = ()

    @field_validator("role")
    @classmethod
    def _known_role(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_unmatched("role", patterns, [role.value for role in Role])

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_unmatched("kind", patterns, [kind.value for kind in OpKind])

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.role or self.block_kind or self.kind or self.name):
            raise PrecisionError("A rule must match by role, block_kind, kind or name.")
        return self


def _refuse_unmatched(field: str, patterns: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise PrecisionError(f"No {field} is like '{pattern}'.{did_you_mean(pattern, known)}")
    return patterns


class Rule(_Strict):
    """Choices for some operations; a field that is left out stays as it was. Of several rules the last one wins."""

    match: Match
    weights: Weights | None = None
    activations: Activations | None = None
    granularity: Granularities | None = None
    calibration: Calibrations | None = None
    symmetric: Symmetries | None = None

    _unique = field_validator(*CHOICE_FIELDS)(_refuse_repeats)

    @model_validator(mode="after")
    def _sets_something(self) -> Self:
        if all(getattr(self, field) is None for field in CHOICE_FIELDS):
            raise PrecisionError(f"A rule must set at least one of {', '.join(CHOICE_FIELDS)}.")
        return self


class SpaceSpec(_Strict):
    """A search-space file.

    Stem and head have uniform 8-bit weights and activations unless a rule that matches them says otherwise.

    Attributes:
        schema_version: Version of this format.
        description: What the space is for.
        default: Choices of every operation.
        rules: Exceptions, in order; the last that matches wins, field by field.
    """

    schema_version: Literal[1]
    description: str = ""
    default: DefaultChoices
    rules: Annotated[tuple[Rule, ...], _listed] = ()

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules, after the implied one for stem and head."""
        return (EDGE_RULE, *self.rules)


_BYTE = SchemeBits(QuantizationScheme.UNIFORM, 8)
EDGE_RULE = Rule(
    match=Match(role=(Role.STEM.value, Role.HEAD.value)),
    weights=(_BYTE,),
    activations=(_BYTE,),
    granularity=(GranularityChoice(QuantizationGranularity.PER_CHANNEL),),
)
"""The rule that keeps stem and head at 8 bits; it stands before all rules of a file."""
