"""Energy of one inference: arithmetic between two laws, moved bits, and the power that flows meanwhile.

    E = Σ N_mac · e(b_w, b_a) + N_unpack · e_unpack + bits_dram · e_dram + bits_cache · e_cache + P_static · t

The widths are those that the device executes. How the energy of a multiplication falls with the widths is not settled,
so two laws bound it: ``e = e_mul8 · b_w · b_a / 64 + e_acc`` (product law) and ``e = e_mul8 · max(b_w, b_a)² / 64 +
e_acc`` (max law: the larger operand decides). The accumulator does not shrink. Figures of a device are an estimate,
never a measurement; ``evoquant.hardware.rapl`` measures where a machine allows it.

References:
    M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: energies of operations.
    N. Spingarn Eliezer et al., "Power Awareness in Low Precision Neural Networks", arXiv:2202.02783: the power of a
    multiplier follows the larger operand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum

import numpy as np
import numpy.typing as npt

from evoquant.hardware.device import FLOAT_TYPES, Device, NativeType
from evoquant.hardware.legality import Legal, legalise
from evoquant.hardware.memory import op_bytes
from evoquant.hardware.provenance import Kind, kinds_of
from evoquant.hardware.tensors import TensorTable
from evoquant.hardware.work import elements, read_elements
from evoquant.types.graph import ModelGraph, Op
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig

MJ_PER_PJ = 1e-9
_REFERENCE_BITS = 8


@dataclass(frozen=True, slots=True)
class EnergyCost:
    """Energy of one inference in millijoules.

    Attributes:
        low_mj: With the product law.
        high_mj: With the max law.
        mj: The middle of both; ``compute_mj + memory_mj + static_mj``.
        compute_mj: Arithmetic, the middle of both laws.
        memory_mj: Moved bits.
        static_mj: Static power times latency.
        rests_on: Kinds of the figures used, from the best known to the weakest.
    """

    low_mj: float
    high_mj: float
    mj: float
    compute_mj: float
    memory_mj: float
    static_mj: float
    rests_on: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class OpEnergy:
    """What one operation adds, whatever its neighbours are: picojoules."""

    low_pj: float
    high_pj: float
    weight_pj: float


def energy(graph: ModelGraph, plan: Mapping[str, LayerQuantConfig], device: Device, latency_ms: float) -> EnergyCost:
    """Energy of one inference of a plan, legalised for the device.

    Weights come from DRAM once and are read from the cache once. A stored tensor is written once and read once by each
    reader, in the cache if it fits there, else in DRAM. What is not an operation counts one float MAC for each value.

    Args:
        graph: The model.
        plan: Precision of every operation.
        device: Where it runs.
        latency_ms: Time of one inference, for the static part.

    Raises:
        HardwareError: If an operation has no legal form on the device.
    """
    legal = [legalise(op, plan[op.name], device) for op in graph.ops]
    parts = [op_energy(op, found, device) for op, found in zip(graph.ops, legal, strict=True)]
    bits = np.array([found.config.activation_bits for found in legal], dtype=np.int64)
    tensors = TensorTable(graph)
    return energy_cost(
        device,
        low_pj=fsum(part.low_pj for part in parts),
        high_pj=fsum(part.high_pj for part in parts),
        moved_pj=fsum(part.weight_pj for part in parts) + float(tensor_pj(tensors, bits, device)),
        float_pj=float_pj(graph, device),
        latency_ms=latency_ms,
    )


def energy_cost(
    device: Device, *, low_pj: float, high_pj: float, moved_pj: float, float_pj: float, latency_ms: float
) -> EnergyCost:
    """Put the sums together: picojoules, and milliseconds of static power."""
    memory_mj = moved_pj * MJ_PER_PJ
    static_mj = device.power.static_w.value * latency_ms
    low, high = (low_pj + float_pj) * MJ_PER_PJ, (high_pj + float_pj) * MJ_PER_PJ
    compute = (low + high) / 2
    other = memory_mj + static_mj
    return EnergyCost(low + other, high + other, compute + other, compute, memory_mj, static_mj, _kinds(device))


def mac_pj(native: NativeType, device: Device) -> tuple[float, float]:
    """Energy of one multiply-accumulate of a native type: by the product law, and by the max law."""
    constants = device.energy
    if native.is_float:
        single = constants.mac_fp32_pj if FLOAT_TYPES[native.name] == FLOAT_BITS else constants.mac_fp16_pj
        return single.value, single.value
    square = _REFERENCE_BITS**2
    product = native.weight_bits * native.activation_bits / square
    largest = max(native.weight_bits, native.activation_bits) ** 2 / square
    multiply, accumulate = constants.multiply_int8_pj.value, constants.accumulate_int32_pj.value
    return multiply * product + accumulate, multiply * largest + accumulate


def op_energy(op: Op, legal: Legal, device: Device) -> OpEnergy:
    """Arithmetic of an operation by both laws, and the way of its weights."""
    low, high = mac_pj(legal.executed, device)
    is_unpacked = legal.config.weight_bits < min(legal.executed.weight_bits, _REFERENCE_BITS)
    unpack = op.weight_count * device.energy.unpack_weight_pj.value if is_unpacked else 0.0
    codes, scales = op_bytes(op, legal.config)
    if legal.config.weight_bits == FLOAT_BITS:
        codes = op.weight_count * device.float_bytes
    moved = 8 * (codes + scales) * (device.energy.dram_pj_per_bit.value + device.energy.cache_pj_per_bit.value)
    return OpEnergy(op.macs * low + unpack, op.macs * high + unpack, moved)


def tensor_pj(tensors: TensorTable, activation_bits: npt.NDArray[np.int64], device: Device) -> npt.NDArray[np.float64]:
    """Energy of writing and reading the stored tensors, of one or many plans: (..., operations) to (...)."""
    size = tensors.element_bytes(activation_bits, float_bytes=device.float_bytes) * tensors.elements
    constants = device.energy
    in_cache = size <= device.memory.cache_bytes.value
    per_bit = constants.cache_pj_per_bit.value + np.where(in_cache, 0.0, constants.dram_pj_per_bit.value)
    total: npt.NDArray[np.float64] = (8.0 * size * tensors.accesses * per_bit).sum(axis=-1)
    return total


def float_pj(graph: ModelGraph, device: Device) -> float:
    """Arithmetic of everything that is neither an operation nor a view: one float MAC for each value."""
    op_nodes = {op.node for op in graph.ops}
    values = sum(
        node.elements for node in graph.nodes if not node.is_view and node.kind != "input" and node.name not in op_nodes
    )
    return values * mac_pj(device.types[device.float_type], device)[0]


def quadratic_law(graph: ModelGraph, plan: Mapping[str, LayerQuantConfig], device: Device) -> float:
    """E = Σ N_mac · E_mac · b_w·b_a / 32² + Σ N_mem · E_dram · b, in millijoules.

    The law of the earlier energy study: quadratic in the width against the energy of an FP32 MAC, every value moved
    through DRAM once at its own width. It is not bounded by what a device executes and is kept for comparison only:
    FP32 is no 32-bit integer, and at 45 nm an 8-bit MAC takes 1/15.3 of an FP32 one, not 1/16.
    """
    compute, moved = 0.0, 0.0
    for op in graph.ops:
        weight_bits, activation_bits = plan[op.name].weight_bits, plan[op.name].activation_bits
        compute += op.macs * weight_bits * activation_bits / FLOAT_BITS**2
        moved += op.weight_count * weight_bits + (read_elements(op) + elements(op.output_shape)) * activation_bits
    constants = device.energy
    return (compute * constants.mac_fp32_pj.value + moved * constants.dram_pj_per_bit.value) * MJ_PER_PJ


def _kinds(device: Device) -> tuple[Kind, ...]:
    constants = device.energy
    return kinds_of([*(getattr(constants, name) for name in type(constants).model_fields), device.power.static_w])
