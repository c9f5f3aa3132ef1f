"""All costs of a plan on one device, fast enough for the inner loop of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import Literal

import numpy as np

from evoquant.hardware.device import Device
from evoquant.hardware.energy import EnergyCost, OpEnergy, energy_cost, float_pj, op_energy, tensor_pj
from evoquant.hardware.latency import LatencyEstimate, LatencyModel
from evoquant.hardware.legality import Legal, legalise
from evoquant.hardware.memory import BYTES_PER_MB, MemoryCost, memory_cost, op_bytes
from evoquant.hardware.tensors import TensorTable
from evoquant.types.graph import ModelGraph, Op
from evoquant.types.precision import LayerQuantConfig


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of one inference of a plan on a device.

    Attributes:
        latency_ms: See ``LatencyEstimate.ms``.
        latency_kind: ``measured`` or ``predicted``.
        latency_spread_ms: See ``LatencyEstimate.spread_ms``.
        energy_mj: The middle of the band.
        energy_low_mj: Lower end of the band (product law).
        energy_high_mj: Upper end of the band (max law).
        memory_mb: ``(model_size_bytes + peak_activation_bytes) / 1e6``.
        model_size_bytes: The stored model.
        peak_activation_bytes: Most bytes of intermediate tensors at the same time.
        compression_ratio: Size of the FP32 model over ``model_size_bytes``.
        bops: Bit operations: Σ MAC · weight bits · activation bits, of the stored widths.
        average_bits: Mean width of a stored weight.
        breakdown: The parts behind the sums.
    """

    latency_ms: float
    latency_kind: Literal["measured", "predicted"]
    latency_spread_ms: float
    energy_mj: float
    energy_low_mj: float
    energy_high_mj: float
    memory_mb: float
    model_size_bytes: int
    peak_activation_bytes: int
    compression_ratio: float
    bops: int
    average_bits: float
    breakdown: Breakdown = field(repr=False)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The parts of the costs of a plan."""

    latency: LatencyEstimate
    energy: EnergyCost
    memory: MemoryCost


@dataclass(frozen=True, slots=True)
class OpCost:
    """What an operation adds to the sums, whatever its neighbours are."""

    legal: Legal
    energy: OpEnergy
    codes: int
    scales: int
    bops: int
    weight_bits: int


class CostModel:
    """Costs of plans of one graph on one device.

    What depends on one operation alone is computed once for each of its configurations and kept.

    Args:
        graph: The model.
        device: Where it runs; plans are legalised for it before they are costed.
        latency_model: Gives the latency.
    """

    def __init__(self, graph: ModelGraph, device: Device, latency_model: LatencyModel) -> None:
        self.graph = graph
        self.device = device
        self.latency_model = latency_model
        self.tensors = TensorTable(graph)
        self._float_pj = float_pj(graph, device)
        self._weights = max(sum(op.weight_count for op in graph.ops), 1)
        self._known: dict[str, dict[LayerQuantConfig, OpCost]] = {op.name: {} for op in graph.ops}

    def legal_plan(self, plan: Mapping[str, LayerQuantConfig]) -> dict[str, LayerQuantConfig]:
        """The plan as the device stores it."""
        return {op.name: self.op_cost(op, plan[op.name]).legal.config for op in self.graph.ops}

    def costs(self, plan: Mapping[str, LayerQuantConfig]) -> Costs:
        """Costs of a plan.

        Raises:
            HardwareError: If an operation has no legal form on the device, or its time is missing.
        """
        parts = [self.op_cost(op, plan[op.name]) for op in self.graph.ops]
        bits = np.array([part.legal.config.activation_bits for part in parts], dtype=np.int64)
        legal = {op.name: part.legal.config for op, part in zip(self.graph.ops, parts, strict=True)}
        latency = self.latency_model.latency(self.graph, legal)
        energy = energy_cost(
            self.device,
            low_pj=fsum(part.energy.low_pj for part in parts),
            high_pj=fsum(part.energy.high_pj for part in parts),
            moved_pj=fsum(part.energy.weight_pj for part in parts) + float(tensor_pj(self.tensors, bits, self.device)),
            float_pj=self._float_pj,
            latency_ms=latency.ms,
        )
        memory = memory_cost(
            self.graph,
            sum(part.codes for part in parts),
            sum(part.scales for part in parts),
            int(self.tensors.peak_bytes(bits)),
        )
        return Costs(
            latency_ms=latency.ms,
            latency_kind=latency.kind,
            latency_spread_ms=latency.spread_ms,
            energy_mj=energy.mj,
            energy_low_mj=energy.low_mj,
            energy_high_mj=energy.high_mj,
            memory_mb=(memory.model_size_bytes + memory.peak_activation_bytes) / BYTES_PER_MB,
            model_size_bytes=memory.model_size_bytes,
            peak_activation_bytes=memory.peak_activation_bytes,
            compression_ratio=memory.compression_ratio,
            bops=sum(part.bops for part in parts),
            average_bits=sum(part.weight_bits for part in parts) / self._weights,
            breakdown=Breakdown(latency, energy, memory),
        )

    def op_cost(self, op: Op, config: LayerQuantConfig) -> OpCost:
        """What an operation adds to the sums.

        Raises:
            HardwareError: If it has no legal form on the device.
        """
        known = self._known[op.name]
        found = known.get(config)
        if found is None:
            legal = legalise(op, config, self.device)
            stored = legal.config
            codes, scales = op_bytes(op, stored)
            bops = op.macs * stored.weight_bits * stored.activation_bits
            weight_bits = op.weight_count * stored.weight_bits
            found = OpCost(legal, op_energy(op, legal, self.device), codes, scales, bops, weight_bits)
            known[config] = found
        return found
