"""What a device executes, and what a configuration becomes that it does not.

A configuration is stored in one form and executed in another: 4-bit weights on a unit that multiplies bytes keep the
memory of 4 bits and have the speed and the energy of 8. ``Legal`` holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from evoquant.errors import HardwareError
from evoquant.hardware.device import Device, NativeType, Precision, Support
from evoquant.space.legality import canonical
from evoquant.types.graph import Op, OpKind, Role
from evoquant.types.precision import (
    FLOAT,
    FLOAT_BITS,
    LLOYD_BITS,
    MAX_LOG2_BITS,
    LayerQuantConfig,
    QuantizationGranularity,
    QuantizationScheme,
)
from evoquant.types.support import FIXED_BITS

Legaliser: TypeAlias = Callable[[Op, LayerQuantConfig], LayerQuantConfig | str]
"""Gives the legal form of a configuration, or the reason why there is none."""

_LEAST_UNIFORM_BITS = 2
_LLOYD_EXECUTED_BITS = 8


@dataclass(frozen=True, slots=True)
class Legal:
    """A configuration that a device executes.

    Attributes:
        config: As stored: memory is that of this one.
        executed: Native type that multiplies it: latency and energy are those of this one.
        reasons: Why it differs from what was asked, one text for each difference; empty if it does not.
        rule: The rule of the device that allows it.
    """

    config: LayerQuantConfig
    executed: NativeType
    reasons: tuple[str, ...]
    rule: Support


@dataclass(frozen=True, slots=True)
class Choices:
    """The configurations of a list that an operation may have on a device.

    Attributes:
        legal: Those that the device executes as they are.
        barred: The others, with the reasons.
    """

    legal: tuple[LayerQuantConfig, ...]
    barred: tuple[tuple[LayerQuantConfig, str], ...]


def legalise(op: Op, config: LayerQuantConfig, device: Device) -> Legal:
    """The nearest configuration that the device executes: never fewer bits, first the least added bits.

    What comes out is canonical and a fixed point: legalising it again changes nothing and gives no reasons.

    Raises:
        HardwareError: If no rule of the device allows this operation at these or more bits, or if the device executes
            nothing quantized and the configuration is.
    """
    config = canonical(op, config)
    if device.refuses_quantized is not None and not config.is_float:
        refusal = device.refuses_quantized
        ground = device.sources.get(refusal.source or "", refusal.how or refusal.why)
        raise HardwareError(
            f"{device.title} cannot execute '{op.name}' at {config.label}: {refusal.reason} ({refusal.kind}: {ground})."
            " Leave the layer in floating point (32 bits) or choose another device."
        )
    rules = [rule for rule in device.support if rule.applies_to(op)]
    fitted = [found for rule in rules if (found := _fit(op, config, rule)) is not None]
    if not fitted:
        stored = sorted({precision for rule in rules for precision in rule.stores})
        raise HardwareError(
            f"{device.title} cannot execute '{op.name}' ({op.kind}) at {config.label}: it stores "
            f"{', '.join(stored) or 'no such operation'}, none of which has as many bits."
        )
    legal, rule = min(fitted, key=lambda pair: _distance(config, pair[0]))
    return Legal(legal, executed_type(legal, rule, device), _reasons(config, legal, rule, device), rule)


def legaliser(device: Device) -> Legaliser:
    """The function that a search space takes: legal form of a configuration, or the reason why there is none."""

    def legal(op: Op, config: LayerQuantConfig) -> LayerQuantConfig | str:
        try:
            return legalise(op, config, device).config
        except HardwareError as error:
            return str(error)

    return legal


def choices(op: Op, configs: Iterable[LayerQuantConfig], device: Device) -> Choices:
    """Sort configurations into those that the device executes as they are, and those that it does not, and why."""
    legal: list[LayerQuantConfig] = []
    barred: list[tuple[LayerQuantConfig, str]] = []
    for config in configs:
        try:
            found = legalise(op, config, device)
        except HardwareError as error:
            barred.append((config, str(error)))
            continue
        if found.reasons:
            barred.append((config, "; ".join(found.reasons)))
        else:
            legal.append(found.config)
    return Choices(tuple(legal), tuple(barred))


def executed_type(config: LayerQuantConfig, rule: Support, device: Device) -> NativeType:
    """The native type that multiplies a stored configuration.

    That of the rule if it names one; the device's float type if a side is float; else the fastest type whose widths
    cover the stored ones, of equally fast ones the narrowest. Float types cover every width. Weights with a zero point
    are multiplied with one bit more than they are stored, lloyd activations with 8.
    """
    if FLOAT_BITS in (config.weight_bits, config.activation_bits):
        return device.types[device.float_type]
    if rule.executes is not None:
        return device.types[rule.executes]
    is_lloyd = config.activation_scheme is QuantizationScheme.LLOYD
    activation_bits = _LLOYD_EXECUTED_BITS if is_lloyd else config.activation_bits
    wanted = Precision(config.weight_bits + (not config.weight_symmetric), activation_bits)
    return next(native for native in device.types.values() if Precision(*native[1:3]).covers(wanted))


def _fit(op: Op, config: LayerQuantConfig, rule: Support) -> tuple[LayerQuantConfig, Support] | None:
    """The configuration in the nearest form that one rule allows; None if the rule has no widths as large."""
    if config.is_float:
        return (FLOAT, rule) if (FLOAT_BITS, FLOAT_BITS) in rule.precisions else None
    is_matmul = op.kind is OpKind.MATMUL
    wanted = _wanted_bits(config, rule, is_matmul=is_matmul)
    allowed = [p for p in rule.precisions if p.covers(wanted) and (not is_matmul or p[0] == p[1])]
    if not allowed:
        return None
    weight_bits, activation_bits = min(allowed, key=lambda p: (sum(p), p))
    if weight_bits == FLOAT_BITS and activation_bits == FLOAT_BITS:
        return FLOAT, rule
    sharing = _sharing(op, config, rule)
    if sharing is None:
        return None
    changes: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits, **sharing}
    if not _keeps_weight_scheme(config, rule, weight_bits, is_matmul=is_matmul):
        changes["weight_scheme"] = QuantizationScheme.UNIFORM
    if not _keeps_activation_scheme(op, config, rule, activation_bits):
        changes["activation_scheme"] = QuantizationScheme.UNIFORM
    changes["weight_symmetric"] = config.weight_symmetric or rule.weights == "symmetric"
    changes["use_symmetric"] = config.use_symmetric or rule.activations == "symmetric"
    return canonical(op, replace(config, **changes)), rule


def _wanted_bits(config: LayerQuantConfig, rule: Support, *, is_matmul: bool) -> Precision:
    weight_bits, activation_bits = config.weight_bits, config.activation_bits
    if is_matmul:
        weight_bits = activation_bits
    elif config.weight_scheme not in rule.weight_schemes:
        weight_bits = max(weight_bits, _LEAST_UNIFORM_BITS)
    return Precision(weight_bits, activation_bits)


def _keeps_weight_scheme(config: LayerQuantConfig, rule: Support, weight_bits: int, *, is_matmul: bool) -> bool:
    scheme = config.weight_scheme
    if weight_bits == FLOAT_BITS or is_matmul or scheme not in rule.weight_schemes:
        return scheme is QuantizationScheme.UNIFORM
    if scheme is QuantizationScheme.LOG2:
        return weight_bits <= MAX_LOG2_BITS
    return weight_bits == FIXED_BITS.get(scheme, weight_bits)


def _keeps_activation_scheme(op: Op, config: LayerQuantConfig, rule: Support, activation_bits: int) -> bool:
    scheme = config.activation_scheme
    if scheme is QuantizationScheme.LOG2 and (op.role is not Role.ATTENTION_AV or activation_bits > MAX_LOG2_BITS):
        return False
    if scheme is QuantizationScheme.LLOYD and activation_bits not in LLOYD_BITS:
        return False
    return scheme in rule.activation_schemes or scheme is QuantizationScheme.UNIFORM


def _sharing(op: Op, config: LayerQuantConfig, rule: Support) -> dict[str, Any] | None:
    """Changes that give the weight scales a granularity that the rule allows; None if it allows none for this op."""
    per_group = QuantizationGranularity.PER_GROUP
    sizes = _group_sizes(op, config, rule)
    if config.granularity is per_group and sizes:
        return {"group_size": max((size for size in sizes if size <= (config.group_size or 0)), default=sizes[0])}
    if config.granularity is not per_group and config.granularity in rule.granularities:
        return {}
    for granularity in (QuantizationGranularity.PER_CHANNEL, QuantizationGranularity.PER_TENSOR):
        if granularity in rule.granularities:
            return {"granularity": granularity, "group_size": None}
    return {"granularity": per_group, "group_size": sizes[0]} if sizes else None


def _group_sizes(op: Op, config: LayerQuantConfig, rule: Support) -> list[int]:
    """Group sizes, ascending, that the rule takes and that divide the input channels of one group of the op."""
    if QuantizationGranularity.PER_GROUP not in rule.granularities or op.kind is OpKind.MATMUL:
        return []
    allowed = [int(size) for size in rule.group_sizes] or ([config.group_size] if config.group_size else [])
    return sorted(size for size in allowed if op.weight_shape[1] % size == 0 and op.weight_shape[1] > size)


def _distance(asked: LayerQuantConfig, legal: LayerQuantConfig) -> tuple[int, int, int]:
    bits = legal.weight_bits + legal.activation_bits
    scheme = asked.weight_scheme is not legal.weight_scheme or asked.activation_scheme is not legal.activation_scheme
    return bits, int(scheme), sum(getattr(asked, f.name) != getattr(legal, f.name) for f in fields(asked))


def _reasons(asked: LayerQuantConfig, legal: LayerQuantConfig, rule: Support, device: Device) -> tuple[str, ...]:
    if asked.is_float and legal.is_float:
        return ()
    ground = f"{rule.kind}: {device.sources.get(rule.source or '', rule.how or rule.why)}"
    return tuple(
        f"{field.name} {_shown(getattr(asked, field.name))} becomes {_shown(getattr(legal, field.name))} "
        f"on {device.title} ({ground})"
        for field in fields(asked)
        if getattr(asked, field.name) != getattr(legal, field.name)
    )


def _shown(value: object) -> str:
    return str(getattr(value, "value", value))
