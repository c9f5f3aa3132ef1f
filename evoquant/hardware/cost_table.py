"""Costs of many plans at once: sums over the groups of a space, and what lives in memory for all plans together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Self

import numpy as np
import numpy.typing as npt

from evoquant.hardware.costs import CostModel
from evoquant.hardware.energy import MJ_PER_PJ, float_pj, tensor_pj
from evoquant.hardware.latency import LatencyEstimate
from evoquant.hardware.memory import BYTES_PER_MB, memory_cost
from evoquant.types.precision import LayerQuantConfig

Floats = npt.NDArray[np.float64]
Plan = Mapping[str, LayerQuantConfig]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """What the choices of one group add, whatever the others are.

    Attributes:
        places: Positions of its operations.
        sums: Milliseconds, picojoules of arithmetic (the middle of the band), picojoules of moving weights, stored
            bytes, and bits of weights: shape (choices, 5).
        bits: Stored activation bits, shape (choices, operations).
    """

    places: list[int]
    sums: Floats
    bits: npt.NDArray[np.int64]

    @classmethod
    def of(cls, costs: CostModel, choices: Sequence[Plan], times: Sequence[LatencyEstimate]) -> Self:
        ops = [(place, op) for place, op in enumerate(costs.graph.ops) if op.name in choices[0]]
        sums, bits = [], []
        for plan, time in zip(choices, times, strict=False):
            parts = [costs.op_cost(op, plan[op.name]) for _, op in ops]
            sums.append(
                (
                    fsum(time.per_op[op.name] for _, op in ops),
                    fsum((part.energy.low_pj + part.energy.high_pj) / 2 for part in parts),
                    fsum(part.energy.weight_pj for part in parts),
                    sum(part.codes + part.scales for part in parts),
                    sum(part.weight_bits for part in parts),
                )
            )
            bits.append([part.legal.config.activation_bits for part in parts])
        return cls([place for place, _ in ops], np.array(sums, dtype=np.float64), np.array(bits, dtype=np.int64))


class CostTable:
    """The costs of ``CostModel`` for plans that are made of choices of groups, hundreds of times faster.

    Args:
        costs: The costs of single plans.
        choices: For each group the plans of its choices; together they name every operation once.

    Attributes:
        is_exact: Whether time is a sum over operations. Where neighbours of unlike precision cost a conversion it is
            not, and the table leaves that out.

    Raises:
        HardwareError: If a choice has no legal form on the device, or its time is missing.
    """

    def __init__(self, costs: CostModel, choices: Sequence[Sequence[Plan]]) -> None:
        self._costs = costs
        # One plan for each row of the longest group has the times of that row of every group.
        rows = range(max(len(group) for group in choices))
        plans = [
            {name: config for group in choices for name, config in group[row % len(group)].items()} for row in rows
        ]
        times = [costs.latency_model.latency(costs.graph, costs.legal_plan(plan)) for plan in plans]
        self.is_exact = not any(time.conversions_ms for time in times)
        self._groups = [_Group.of(costs, group, times) for group in choices]
        self._fixed_ms = times[0].ms - times[0].conversions_ms - fsum(times[0].per_op.values())
        self._fixed_pj = float_pj(costs.graph, costs.device)
        self._fixed_bytes = memory_cost(costs.graph, 0, 0, 0).model_size_bytes
        self._weights = max(sum(op.weight_count for op in costs.graph.ops), 1)

    def __call__(self, indices: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Costs of plans by name, each of shape (plans,).

        Args:
            indices: For each plan the index of the choice of each group, shape (plans, groups).
        """
        device, tensors = self._costs.device, self._costs.tensors
        sums = np.zeros((len(indices), 5))
        bits = np.empty((len(indices), len(self._costs.graph.ops)), dtype=np.int64)
        for group, chosen in zip(self._groups, indices.T, strict=True):
            sums += group.sums[chosen]
            bits[:, group.places] = group.bits[chosen]
        latency_ms = self._fixed_ms + sums[:, 0]
        moved_pj = sums[:, 2] + tensor_pj(tensors, bits, device)
        size = self._fixed_bytes + sums[:, 3]
        return {
            "latency_ms": latency_ms,
            "energy_mj": (self._fixed_pj + sums[:, 1] + moved_pj) * MJ_PER_PJ
            + device.power.static_w.value * latency_ms,
            "memory_mb": (size + tensors.peak_bytes(bits)) / BYTES_PER_MB,
            "model_size_bytes": size,
            "average_bits": sums[:, 4] / self._weights,
        }
