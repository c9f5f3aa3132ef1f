"""The precision of one layer: scheme, bits, granularity and calibration of its weights and activations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

from evoquant.errors import PrecisionError

FLOAT_BITS = 32
"""The number of bits that means: not quantized."""

WEIGHT_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, FLOAT_BITS)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 16, FLOAT_BITS)
MAX_LOG2_BITS = 4
LLOYD_BITS = (4, 5, 6, 7)
NORMAL_LEVELS = (-20, -15, -12, -10, -8, -6, -4, -2, 0, 2, 4, 6, 9, 12, 15, 20)
"""Levels of the scheme ``NORMAL``: small integers, so that kernels add many products in 16 bits.

Of a normal distribution they leave 1.2 dB less noise than the 15 equal steps of symmetric 4-bit codes, and 0.3 dB more
than 16 real levels without a zero do.
"""


class QuantizationScheme(StrEnum):
    """How real values map to codes.

    ``NORMAL`` is for weights of 4 bits: 16 levels that lie as bell-shaped values do, dense near zero.

    ``LLOYD`` is for activations: levels that cost least for the values that a tensor has (Lloyd-Max), each of them one
    of 256 equal steps, so kernels round to bytes, look the level up and multiply bytes.

    ``SYMMETRIC`` and ``ASYMMETRIC`` are the two uniform schemes by their older names: a ``LayerQuantConfig`` accepts
    them and stores ``UNIFORM`` with the symmetry beside it.
    """

    NORMAL = "normal"
    UNIFORM = "uniform"
    POWER_OF_TWO = "power_of_two"
    LOG2 = "log2"
    TERNARY = "ternary"
    BINARY = "binary"
    LLOYD = "lloyd"
    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class QuantizationGranularity(StrEnum):
    """Which values share one scale."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_GROUP = "per_group"


class CalibrationMethod(StrEnum):
    """How the clipping range of an activation, or of a weight channel, is set.

    ``FISHER`` weighs the error of an activation by its effect on the class probabilities; it needs gradients over the
    calibration images. Weights, and activations of which no gradients were sampled, get the least square error.
    ``RANKING`` sets the ranges of q and k by the attention scores: how alike they stay, and which change their order;
    it is ``FISHER`` everywhere else.
    """

    MIN_MAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"
    FISHER = "fisher"
    RANKING = "ranking"


@dataclass(frozen=True, slots=True)
class LayerQuantConfig:
    """The precision of one convolution, linear layer or attention matmul.

    For an attention matmul both operands are activations: the second one (k or v) takes the place of the weight and
    always has ``activation_bits``.

    Attributes:
        weight_bits: Bits of a stored weight, sign and zero included; 32 leaves weights in floating point.
        activation_bits: Bits of an input activation; 32 leaves inputs in floating point.
        weight_scheme: Scheme of the weights. ``NORMAL`` has 4 bits, ``TERNARY`` 2, ``BINARY`` 1.
        activation_scheme: Scheme of the input; ``LOG2`` only for the output of a softmax, ``LLOYD`` has 4 to 7 bits.
        granularity: Sharing of weight scales; input activations have one scale per tensor.
        use_symmetric: Whether input activations have no zero point.
        weight_symmetric: Whether weights have no zero point.
        calibration_method: How clipping ranges are set.
        percentile: Two-sided share of values kept by ``PERCENTILE``, in percent.
        group_size: Input channels per scale with ``PER_GROUP``, else None.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_scheme: QuantizationScheme = QuantizationScheme.UNIFORM
    activation_scheme: QuantizationScheme = QuantizationScheme.UNIFORM
    granularity: QuantizationGranularity = QuantizationGranularity.PER_CHANNEL
    use_symmetric: bool = False
    weight_symmetric: bool = True
    calibration_method: CalibrationMethod = CalibrationMethod.MSE
    percentile: float = 99.99
    group_size: int | None = None

    def __post_init__(self) -> None:
        self._take_older_names()
        for name, supported in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            if getattr(self, name) not in supported:
                expected = ", ".join(map(str, supported))
                raise PrecisionError(f"{name} must be one of {expected}, but got {getattr(self, name)}.")
        if not 50.0 < self.percentile <= 100.0:
            raise PrecisionError(f"percentile must lie in (50, 100], but got {self.percentile}.")
        if (self.granularity is QuantizationGranularity.PER_GROUP) != (self.group_size is not None):
            raise PrecisionError(
                f"group_size goes with granularity 'per_group', but got {self.granularity.value!r} with "
                f"group_size {self.group_size}."
            )

    def _take_older_names(self) -> None:
        for side, symmetric in (("weight_scheme", "weight_symmetric"), ("activation_scheme", "use_symmetric")):
            scheme = QuantizationScheme(getattr(self, side))
            if scheme in (QuantizationScheme.SYMMETRIC, QuantizationScheme.ASYMMETRIC):
                object.__setattr__(self, symmetric, scheme is QuantizationScheme.SYMMETRIC)
                scheme = QuantizationScheme.UNIFORM
            object.__setattr__(self, side, scheme)
        object.__setattr__(self, "granularity", QuantizationGranularity(self.granularity))
        object.__setattr__(self, "calibration_method", CalibrationMethod(self.calibration_method))

    @property
    def is_float(self) -> bool:
        """Whether neither weights nor activations are quantized."""
        return self.weight_bits == FLOAT_BITS and self.activation_bits == FLOAT_BITS

    @property
    def label(self) -> str:
        """The usual short form, such as ``W4A8``, with the weight scheme where it is not uniform."""
        if self.is_float:
            return "FP32"
        suffix = "" if self.weight_scheme is QuantizationScheme.UNIFORM else f"-{self.weight_scheme.value}"
        return f"W{self.weight_bits}A{self.activation_bits}{suffix}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one for each field."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value.value if isinstance(value, StrEnum) else value for name, value in values}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            PrecisionError: If a key is unknown or a value is not allowed.
        """
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise PrecisionError(f"Unknown precision fields: {', '.join(sorted(unknown))}.")
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise PrecisionError(f"Cannot read a layer precision from {data}: {error}") from error


FLOAT = LayerQuantConfig(weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS)
"""A layer that stays in floating point."""
