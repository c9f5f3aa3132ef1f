"""The choices that a search-space file lists, each with a short form: number formats, granularities, calibrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from evoquant.errors import PrecisionError, did_you_mean
from evoquant.types import FLOAT_BITS, CalibrationMethod, QuantizationGranularity, QuantizationScheme
from evoquant.types.support import FIXED_BITS

_DEFAULT_PERCENTILE = 99.99


@dataclass(frozen=True, slots=True)
class SchemeBits:
    """A number format of weights or activations, in short ``uniform:4``, ``log2:3``, ``ternary`` or ``float``."""

    scheme: QuantizationScheme
    bits: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the short form, or a mapping with ``scheme`` and ``bits``.

        Raises:
            PrecisionError: If the text names no scheme, or the bits do not fit it.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            unknown = sorted(set(value) - {"scheme", "bits"})
            if unknown or "scheme" not in value:
                raise PrecisionError(f"Expected the keys scheme and bits, but got {sorted(value)}.")
            return cls._of(str(value["scheme"]), value.get("bits"))
        if not isinstance(value, str):
            raise PrecisionError(f"Expected a text such as 'uniform:4', 'ternary' or 'float', but got {value!r}.")
        name, _, bits = value.partition(":")
        return cls._of(name.strip(), bits.strip() or None)

    @classmethod
    def _of(cls, name: str, bits: object) -> Self:
        if name == "float":
            if bits not in (None, FLOAT_BITS, str(FLOAT_BITS)):
                raise PrecisionError(f"'float' has {FLOAT_BITS} bits, but got {bits}.")
            return cls(QuantizationScheme.UNIFORM, FLOAT_BITS)
        schemes = [scheme.value for scheme in QuantizationScheme if scheme not in ("symmetric", "asymmetric")]
        if name not in schemes:
            raise PrecisionError(f"Unknown scheme '{name}'.{did_you_mean(name, [*schemes, 'float'])}")
        scheme = QuantizationScheme(name)
        fixed = FIXED_BITS.get(scheme)
        given = fixed if bits is None else bits
        if given is None:
            raise PrecisionError(f"Scheme '{name}' needs its bits, for example '{name}:4'.")
        try:
            number = int(str(given))
        except ValueError as error:
            raise PrecisionError(f"The bits of '{name}' must be a whole number, but got {given!r}.") from error
        if fixed is not None and number != fixed:
            raise PrecisionError(f"Scheme '{name}' has {fixed} bits, but got {number}.")
        return cls(scheme, number)

    def __str__(self) -> str:
        if self.bits == FLOAT_BITS:
            return "float"
        return self.scheme.value if self.scheme in FIXED_BITS else f"{self.scheme.value}:{self.bits}"


@dataclass(frozen=True, slots=True)
class GranularityChoice:
    """Which weights share one scale; its short form is ``per_tensor``, ``per_channel`` or ``per_group:64``."""

    granularity: QuantizationGranularity
    group_size: int | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the short form.

        Raises:
            PrecisionError: If the text names no granularity, or the group size does not belong to it.
        """
        if isinstance(value, cls):
            return value
        name, _, size = str(value).partition(":")
        names = [member.value for member in QuantizationGranularity]
        if name not in names:
            raise PrecisionError(f"Unknown granularity '{name}'.{did_you_mean(name, names)}")
        granularity = QuantizationGranularity(name)
        if (granularity is QuantizationGranularity.PER_GROUP) != bool(size):
            raise PrecisionError(f"Only 'per_group' has a size, as in 'per_group:64', but got '{value}'.")
        if size and (not size.isdecimal() or int(size) < 1):
            raise PrecisionError(f"The group size must be a positive whole number, but got '{value}'.")
        return cls(granularity, int(size) if size else None)

    def __str__(self) -> str:
        return self.granularity.value + ("" if self.group_size is None else f":{self.group_size}")


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """How clipping ranges are set; its short form is ``minmax``, ``percentile:99.99``, ``mse`` or ``entropy``."""

    method: CalibrationMethod
    percentile: float = _DEFAULT_PERCENTILE

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the short form; ``percentile`` alone keeps 99.99 percent.

        Raises:
            PrecisionError: If the text names no method, or the percentile does not belong to it.
        """
        if isinstance(value, cls):
            return value
        name, _, percent = str(value).partition(":")
        names = [member.value for member in CalibrationMethod]
        if name not in names:
            raise PrecisionError(f"Unknown calibration '{name}'.{did_you_mean(name, names)}")
        method = CalibrationMethod(name)
        if percent and method is not CalibrationMethod.PERCENTILE:
            raise PrecisionError(f"Only 'percentile' has a number, as in 'percentile:99.99', but got '{value}'.")
        try:
            kept = float(percent) if percent else _DEFAULT_PERCENTILE
        except ValueError as error:
            raise PrecisionError(f"The percentile must be a number, but got '{value}'.") from error
        if not 50.0 < kept <= 100.0:
            raise PrecisionError(f"The percentile must lie in (50, 100], but got '{value}'.")
        return cls(method, kept)

    def __str__(self) -> str:
        is_percentile = self.method is CalibrationMethod.PERCENTILE
        return f"{self.method.value}:{self.percentile:g}" if is_percentile else self.method.value
