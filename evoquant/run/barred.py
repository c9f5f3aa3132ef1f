"""What a group may be on a device, and why it may not be what else the search space lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evoquant.hardware import Device, legalise
from evoquant.space import (
    NO_EFFECT,
    Axis,
    CalibrationChoice,
    GranularityChoice,
    GroupTable,
    SchemeBits,
    SearchSpace,
    canonical,
)
from evoquant.types import LayerQuantConfig, Op

AXES: Mapping[Axis, tuple[str, tuple[str, ...]]] = {
    Axis.WEIGHT: ("weights", ("weight_bits", "weight_scheme")),
    Axis.ACTIVATION: ("activations", ("activation_bits", "activation_scheme")),
    Axis.GRANULARITY: ("granularity", ("granularity", "group_size")),
    Axis.CALIBRATION: ("calibration", ()),
    Axis.SYMMETRY: ("symmetric", ("use_symmetric",)),
}
"""The name of each axis, and what it sets, as the reasons of ``legalise`` name it."""


@dataclass(frozen=True, slots=True)
class DeviceChoices:
    """What a group may be on a device.

    Attributes:
        available: By axis, the values that are executed.
        barred: By axis, the listed values that are not, each with the reason: the operation cannot have it, the device
            turns it into another one (with the ground), or it means the same as another one (``NO_EFFECT``).
    """

    available: Mapping[str, tuple[str, ...]]
    barred: Mapping[str, Mapping[str, str]]


def device_choices(space: SearchSpace, device: Device) -> dict[str, DeviceChoices]:
    """The choices of every group by its name."""
    known: dict[int, DeviceChoices] = {}
    for group, table in zip(space.groups, space.tables, strict=True):
        if id(table) not in known:
            ops = [space.graph.op[name] for name in group.ops]
            known[id(table)] = _of_table(table, ops, space.choices(group.name).barred, device)
    return {group.name: known[id(table)] for group, table in zip(space.groups, space.tables, strict=True)}


def _of_table(
    table: GroupTable, ops: Sequence[Op], refused: Mapping[str, Mapping[str, str]], device: Device
) -> DeviceChoices:
    turned = _turned(table, ops, device)
    available: dict[str, tuple[str, ...]] = {}
    barred: dict[str, dict[str, str]] = {}
    for axis, (name, _) in AXES.items():
        executed = dict.fromkeys(_text(config, axis) for configs in table.configs.values() for config in configs)
        available[name] = tuple(executed)
        barred[name] = {}
        for value in table.axes.values[axis]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if text not in executed:
                told = refused[name].get(text, NO_EFFECT)
                most = turned.get((axis, text), Counter()).most_common(1)
                barred[name][text] = most[0][0] if told == NO_EFFECT and most else told
    return DeviceChoices(available, barred)


def _turned(table: GroupTable, ops: Sequence[Op], device: Device) -> dict[tuple[Axis, str], Counter[str]]:
    """Why the device turns a value into another one: how often, by axis and value."""
    found: dict[tuple[Axis, str], Counter[str]] = {}
    asked = {
        (index, canonical(op, table.axes.requested(gene)))
        for row, gene in enumerate(table.genes.tolist())
        if row not in table.reasons
        for index, op in enumerate(ops)
    }
    for index, config in sorted(asked, key=lambda pair: (pair[0], repr(pair[1]))):
        for axis, reason in _by_axis(legalise(ops[index], config, device).reasons):
            found.setdefault((axis, _text(config, axis)), Counter())[reason] += 1
    return found


def _by_axis(reasons: Sequence[str]) -> Iterator[tuple[Axis, str]]:
    for reason in reasons:
        for axis, (_, fields) in AXES.items():
            if reason.split(" ", 1)[0] in fields:
                yield axis, reason


def _text(config: LayerQuantConfig, axis: Axis) -> str:
    """The value of one axis in the words of a search space."""
    match axis:
        case Axis.WEIGHT:
            return str(SchemeBits(config.weight_scheme, config.weight_bits))
        case Axis.ACTIVATION:
            return str(SchemeBits(config.activation_scheme, config.activation_bits))
        case Axis.GRANULARITY:
            return str(GranularityChoice(config.granularity, config.group_size))
        case Axis.CALIBRATION:
            return str(CalibrationChoice(config.calibration_method, config.percentile))
    return str(config.use_symmetric).lower()
