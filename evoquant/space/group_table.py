"""All genes of one group, and for each the gene that stands for what a target would execute."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import ConfigurationError
from evoquant.space.axes import Axis, GroupAxes
from evoquant.space.legality import canonical, refusal
from evoquant.types import Group, LayerQuantConfig, Op

Legal: TypeAlias = Callable[[Op, LayerQuantConfig], LayerQuantConfig | str]
"""What a target executes when asked for a precision of an operation, or the reason why it refuses."""

NO_EFFECT = "has no effect here"
"""Why a value is barred that means the same as another one."""

Configs: TypeAlias = tuple[LayerQuantConfig, ...]


@dataclass(frozen=True)
class GroupTable:
    """The genes of a group (or of several alike), enumerated in lexicographic order of their five indices.

    Attributes:
        axes: Values of the five axes.
        genes: All genes, shape (rows, 5).
        canonical: For each row, the row that stands for it: of all rows with the same phenotype the first; of an
            illegal row the nearest legal one.
        configs: Executed precision of each operation of the group, by canonical row.
        rows: The inverse of ``configs``.
        reasons: Why each refused row is refused.
    """

    axes: GroupAxes
    genes: NDArray[np.int64]
    canonical: NDArray[np.int64]
    configs: Mapping[int, Configs]
    rows: Mapping[Configs, int]
    reasons: Mapping[int, str]

    @property
    def phenotypes(self) -> int:
        """Number of distinct precisions that the group can have."""
        return len(self.configs)

    def nearest(self, wanted: Sequence[LayerQuantConfig]) -> int:
        """The canonical row whose precisions are most like the wanted ones, one for each operation of the group."""
        target = np.array([_features(config) for config in wanted])
        nearest = np.argmin(_distance(self._config_features, target).sum(axis=1))
        return list(self.configs)[int(nearest)]

    @cached_property
    def _config_features(self) -> NDArray[np.float64]:
        return np.array([[_features(config) for config in configs] for configs in self.configs.values()])


def build_table(group: Group, ops: Sequence[Op], axes: GroupAxes, legal: Legal | None) -> GroupTable:
    """Try every gene of a group.

    Raises:
        ConfigurationError: If no gene of the group is legal.
    """
    genes = np.array(list(itertools.product(*(range(size) for size in axes.sizes))), dtype=np.int64)
    tried: dict[tuple[int, LayerQuantConfig], LayerQuantConfig | str] = {}
    rows: dict[Configs, int] = {}
    reasons: dict[int, str] = {}
    standing = np.empty(len(genes), dtype=np.int64)
    for row, gene in enumerate(genes.tolist()):
        outcome = _execute(ops, axes.requested(gene), legal, tried)
        if isinstance(outcome, str):
            reasons[row] = outcome
        else:
            standing[row] = rows.setdefault(outcome, row)
    if not rows:
        first = "; ".join(dict.fromkeys(reasons.values()))
        raise ConfigurationError(
            f"Group '{group.name}' ({', '.join(op.name for op in ops)}): none of its {len(genes)} choices can be "
            f"executed: {first}. Give it other choices with a rule in the search space."
        )
    table = GroupTable(axes, genes, standing, {row: configs for configs, row in rows.items()}, rows, reasons)
    _replace_refused(table)
    return table


def _execute(
    ops: Sequence[Op],
    requested: LayerQuantConfig,
    legal: Legal | None,
    tried: dict[tuple[int, LayerQuantConfig], LayerQuantConfig | str],
) -> Configs | str:
    executed = []
    for index, op in enumerate(ops):
        config = canonical(op, requested)
        if (index, config) not in tried:
            tried[index, config] = _execute_one(op, config, legal)
        outcome = tried[index, config]
        if isinstance(outcome, str):
            return outcome
        executed.append(outcome)
    return tuple(executed)


def _execute_one(op: Op, config: LayerQuantConfig, legal: Legal | None) -> LayerQuantConfig | str:
    reason = refusal(op, config)
    if reason is not None:
        return reason
    if legal is None:
        return config
    outcome = legal(op, config)
    return outcome if isinstance(outcome, str) else canonical(op, outcome)


def _replace_refused(table: GroupTable) -> None:
    """Let the nearest legal row stand for each refused one."""
    legal = np.array(list(table.configs))
    features = np.array([[_features(table.axes.requested(gene))] for gene in table.genes[legal].tolist()])
    for row in table.reasons:
        wanted = np.array([_features(table.axes.requested(table.genes[row].tolist()))])
        steps = np.abs(table.genes[legal] - table.genes[row])
        small = steps @ np.array([0.0, 0.0, 1e-1, 1e-2, 1e-3])
        table.canonical[row] = legal[np.argmin(_distance(features, wanted).sum(axis=1) + small)]


_FEATURE_WEIGHTS = np.array([1e4, 1e4, 1e3, 1e3, 1e2, 1e1, 1.0])


def _features(config: LayerQuantConfig) -> list[float]:
    """Bits first, then schemes, granularity, calibration and symmetry, as numbers whose differences count."""
    return [
        np.log2(config.weight_bits),
        np.log2(config.activation_bits),
        _ordinal(config.weight_scheme),
        _ordinal(config.activation_scheme),
        _ordinal(config.granularity) + (config.group_size or 0) / 1e6,
        _ordinal(config.calibration_method) + config.percentile / 1e6,
        float(config.use_symmetric),
    ]


def _ordinal(member: Enum) -> float:
    return float(list(type(member)).index(member))


def _distance(features: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted difference of shape (rows, ops); of two equally near precisions the one with more bits is nearer."""
    gaps = np.abs(features - wanted)
    gaps[..., 2:] = np.minimum(gaps[..., 2:], 1.0)
    more_bits = features[..., 0] + features[..., 1]
    return np.asarray(gaps @ _FEATURE_WEIGHTS - 1e-6 * more_bits, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class GroupChoices:
    """What a group may be, for people to read.

    Attributes:
        group: Name of the group.
        ops: Its operations.
        available: By axis (``weights``, ``activations``, ``granularity``, ``calibration``, ``symmetric``), the values
            that make a difference.
        barred: By axis, the listed values that are not available, each with the reason.
        phenotypes: Number of distinct precisions.
    """

    group: str
    ops: tuple[str, ...]
    available: Mapping[str, tuple[str, ...]]
    barred: Mapping[str, Mapping[str, str]]
    phenotypes: int


_AXIS_NAMES = ("weights", "activations", "granularity", "calibration", "symmetric")


def choices_of(table: GroupTable, group: Group) -> GroupChoices:
    """Summarise the table of a group."""
    used = table.genes[np.array(list(table.configs))]
    available: dict[str, tuple[str, ...]] = {}
    barred: dict[str, dict[str, str]] = {}
    for axis in Axis:
        name = _AXIS_NAMES[axis]
        values = [_text(value) for value in table.axes.values[axis]]
        present = set(used[:, axis].tolist())
        available[name] = tuple(text for index, text in enumerate(values) if index in present)
        barred[name] = {
            text: _why_barred(table, axis, index) for index, text in enumerate(values) if index not in present
        }
    return GroupChoices(group.name, group.ops, available, barred, table.phenotypes)


def _why_barred(table: GroupTable, axis: Axis, index: int) -> str:
    """The reason that is this value's own: that of rows which another value on the same axis would make legal."""
    rows = np.flatnonzero(table.genes[:, axis] == index)
    legal = np.ones(len(table.genes), dtype=bool)
    legal[list(table.reasons)] = False
    grid = np.moveaxis(legal.reshape(table.axes.sizes), axis, -1)
    curable = np.moveaxis(np.broadcast_to(grid.any(axis=-1, keepdims=True), grid.shape), -1, axis).ravel()
    refused = [row for row in rows.tolist() if row in table.reasons]
    own = [row for row in refused if curable[row]]
    if not own and len(refused) < len(rows):
        return NO_EFFECT
    return Counter(table.reasons[row] for row in own or refused).most_common(1)[0][0]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
