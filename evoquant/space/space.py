"""The search space: genomes of integers, the plans that they stand for, and the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evoquant.config.space import SpaceSpec
from evoquant.errors import ConfigurationError, PrecisionError
from evoquant.space.axes import N_AXES, GroupAxes, group_axes
from evoquant.space.group_table import GroupChoices, GroupTable, Legal, build_table, choices_of
from evoquant.space.legality import canonical
from evoquant.space.plan import Plan, hash_sorted_lines, plan_line
from evoquant.types import Group, LayerQuantConfig, ModelGraph, Op

Genes: TypeAlias = NDArray[np.int64]
"""One genome: five indices for each group, flattened, in the order of computation."""


@dataclass(frozen=True)
class SearchSpace:
    """Every plan that a search may propose for one graph.

    A genome has five integers for each group: the index of its weight format, activation format, granularity,
    calibration and symmetry (see ``Axis``). Several genomes can mean the same plan; ``repair`` gives the one that
    stands for them all, and for one that no target would execute, the nearest that it would.

    Attributes:
        graph: The model.
        groups: Its groups in the order of computation.
        tables: The genes of each group.
    """

    graph: ModelGraph
    groups: tuple[Group, ...]
    tables: tuple[GroupTable, ...]

    @classmethod
    def build(cls, spec: SpaceSpec, graph: ModelGraph, *, legal: Legal | None = None) -> Self:
        """Find what every group of a graph may be.

        Args:
            spec: A search-space file.
            graph: The model.
            legal: What a target executes for a precision of an operation, or the reason why it refuses. It may look
                at everything but the names of the operation: it is asked once for operations that are otherwise alike.
                None allows whatever makes sense for the operation.

        Raises:
            ConfigurationError: If some groups have no legal choice; one line for each.
        """
        position = {op.name: index for index, op in enumerate(graph.ops)}
        groups = tuple(sorted(graph.groups, key=lambda group: min(position[name] for name in group.ops)))
        known: dict[tuple[GroupAxes, tuple[Op, ...]], GroupTable] = {}
        tables: list[GroupTable] = []
        problems: list[str] = []
        for group in groups:
            ops = [graph.op[name] for name in group.ops]
            try:
                axes = group_axes(spec, group, ops)
                alike = (axes, tuple(_without_names(op) for op in ops))
                if alike not in known:
                    known[alike] = build_table(group, ops, axes, legal)
                tables.append(known[alike])
            except ConfigurationError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigurationError(problems)
        return cls(graph, groups, tuple(tables))

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return len(self.groups) * N_AXES

    @cached_property
    def upper_bounds(self) -> Genes:
        """The largest value of each gene; the smallest is 0."""
        return np.array([size - 1 for table in self.tables for size in table.axes.sizes], dtype=np.int64)

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of distinct plans."""
        return math.fsum(math.log10(table.phenotypes) for table in self.tables)

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Positions of groups that lie in one block of the network, block by block."""
        members: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups):
            members.setdefault(self.graph.op[group.ops[0]].block, []).append(index)
        return tuple(tuple(indices) for indices in members.values())

    def repair(self, genes: ArrayLike) -> Genes:
        """The genome that stands for the plan of this one.

        Args:
            genes: One genome, or several in an array whose last axis is the genome; values outside the bounds are
                moved to the nearest bound.

        Returns:
            An array of the same shape. Repairing it again changes nothing.
        """
        rows = self._canonical_rows[self._rows(genes)]
        return self._genes_of_rows[rows].reshape(*rows.shape[:-1], self.n_genes)

    def decode(self, genes: ArrayLike) -> dict[str, LayerQuantConfig]:
        """The plan of one genome: what a target executes, operation by operation."""
        plan: dict[str, LayerQuantConfig] = {}
        for group, table, row in zip(self.groups, self.tables, self._local_rows(genes), strict=True):
            plan.update(zip(group.ops, table.configs[row], strict=True))
        return {op.name: plan[op.name] for op in self.graph.ops}

    def encode(self, plan: Plan) -> Genes:
        """The genome of a plan.

        Raises:
            PrecisionError: If the plan misses an operation or has one that the graph has not, or if the space cannot
                express the precision of one; the message names the operation.
        """
        self._check_names(plan)
        return np.concatenate(
            [
                table.genes[self._row_of(group, table, [plan[name] for name in group.ops])]
                for group, table in zip(self.groups, self.tables, strict=True)
            ]
        )

    def nearest(self, plan: Plan) -> Genes:
        """The genome whose plan is most like this one: bits count most, then schemes, then the rest.

        Raises:
            PrecisionError: If the plan misses an operation or has one that the graph has not.
        """
        self._check_names(plan)
        genes = []
        for group, table in zip(self.groups, self.tables, strict=True):
            wanted = [canonical(self.graph.op[name], plan[name]) for name in group.ops]
            genes.append(table.genes[table.nearest(wanted)])
        return np.concatenate(genes)

    def phenotype_hash(self, genes: ArrayLike) -> str:
        """The ``plan_hash`` of the plan of one genome, the same in every process."""
        rows = self._local_rows(genes)
        return hash_sorted_lines([self._lines[group][rows[group]][place] for group, place in self._order])

    def reachable(self) -> dict[str, tuple[LayerQuantConfig, ...]]:
        """For each operation, the distinct precisions that it can have in this space."""
        found: dict[str, dict[LayerQuantConfig, None]] = {op.name: {} for op in self.graph.ops}
        for group, table in zip(self.groups, self.tables, strict=True):
            for configs in table.configs.values():
                for name, config in zip(group.ops, configs, strict=True):
                    found[name][config] = None
        return {name: tuple(configs) for name, configs in found.items()}

    def choices(self, group: str) -> GroupChoices:
        """What a group may be, and why the other listed values are barred."""
        for candidate, table in zip(self.groups, self.tables, strict=True):
            if candidate.name == group:
                return choices_of(table, candidate)
        raise ConfigurationError(f"Group '{group}' is not in this space.")

    def canonical_genes(self, group: int) -> Genes:
        """The genes of the group at this position that stand for its distinct precisions, shape (choices, 5)."""
        table = self.tables[group]
        rows = np.array(list(table.configs), dtype=np.int64)
        return np.asarray(table.genes[rows], dtype=np.int64)

    def choice_plans(self, group: int) -> tuple[dict[str, LayerQuantConfig], ...]:
        """What each of ``canonical_genes(group)`` means for the operations of the group."""
        names = self.groups[group].ops
        return tuple(dict(zip(names, configs, strict=True)) for configs in self.tables[group].configs.values())

    @cached_property
    def _offsets(self) -> Genes:
        sizes = [len(table.genes) for table in self.tables]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)

    @cached_property
    def _strides(self) -> Genes:
        strides = []
        for table in self.tables:
            sizes = table.axes.sizes
            strides.append([math.prod(sizes[axis + 1 :]) for axis in range(N_AXES)])
        return np.array(strides, dtype=np.int64)

    @cached_property
    def _canonical_rows(self) -> Genes:
        pairs = zip(self.tables, self._offsets.tolist(), strict=True)
        return np.concatenate([table.canonical + offset for table, offset in pairs])

    @cached_property
    def _genes_of_rows(self) -> Genes:
        return np.concatenate([table.genes for table in self.tables])

    @cached_property
    def _order(self) -> tuple[tuple[int, int], ...]:
        """Group and place in it of every operation, in the order of their plan entries."""
        places = [(group, place) for group, members in enumerate(self.groups) for place in range(len(members.ops))]
        return tuple(sorted(places, key=lambda at: next(iter(self._lines[at[0]].values()))[at[1]]))

    @cached_property
    def _lines(self) -> tuple[Mapping[int, Sequence[bytes]], ...]:
        return tuple(
            {
                row: [plan_line(name, config) for name, config in zip(group.ops, configs, strict=True)]
                for row, configs in table.configs.items()
            }
            for group, table in zip(self.groups, self.tables, strict=True)
        )

    def _rows(self, genes: ArrayLike) -> Genes:
        array = np.asarray(genes)
        if array.shape[-1:] != (self.n_genes,) or not np.issubdtype(array.dtype, np.integer):
            raise PrecisionError(
                f"A genome of this space has {self.n_genes} integers (five for each of {len(self.groups)} groups), "
                f"but got an array of shape {array.shape} and type {array.dtype}."
            )
        inside = np.clip(array, 0, self.upper_bounds).reshape(*array.shape[:-1], len(self.groups), N_AXES)
        return np.asarray((inside * self._strides).sum(axis=-1) + self._offsets, dtype=np.int64)

    def _local_rows(self, genes: ArrayLike) -> list[int]:
        rows: list[int] = (self._canonical_rows[self._rows(genes)] - self._offsets).tolist()
        return rows

    def _check_names(self, plan: Plan) -> None:
        missing = [name for name in self.graph.op if name not in plan]
        unknown = [name for name in plan if name not in self.graph.op]
        if missing or unknown:
            raise PrecisionError(
                f"A plan for {self.graph.model} has one precision for each of its {len(self.graph.ops)} operations, "
                f"but this one misses {', '.join(missing) or 'none'} and has unknown {', '.join(unknown) or 'none'}."
            )

    def _row_of(self, group: Group, table: GroupTable, wanted: Sequence[LayerQuantConfig]) -> int:
        ops = [self.graph.op[name] for name in group.ops]
        configs = tuple(canonical(op, config) for op, config in zip(ops, wanted, strict=True))
        if configs in table.rows:
            return table.rows[configs]
        for index, (op, config) in enumerate(zip(ops, configs, strict=True)):
            if all(row[index] != config for row in table.rows):
                raise PrecisionError(f"Operation '{op.name}': this space has no {_described(config)}.")
        raise PrecisionError(
            f"Operation '{ops[0].name}': it obeys one gene with {', '.join(group.ops[1:])}, but the plan gives them "
            f"precisions that do not go together: {', '.join(map(_described, configs))}."
        )


def _without_names(op: Op) -> Op:
    return replace(op, name="", block="", group="", node="", inputs=(), producers=(), consumers=())


def _described(config: LayerQuantConfig) -> str:
    default: dict[str, Any] = LayerQuantConfig().to_dict()
    parts = [f"{key}={value}" for key, value in config.to_dict().items() if value != default[key] and "bits" not in key]
    return config.label + (f" ({', '.join(parts)})" if parts else "")
