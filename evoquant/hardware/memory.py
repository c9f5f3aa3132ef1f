"""Memory of a plan: the stored model, and the intermediate tensors that live at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from evoquant.hardware.tensors import FLOAT_BYTES, TensorTable
from evoquant.types.graph import ModelGraph, Op, OpKind
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig
from evoquant.types.storage import weight_bytes

BYTES_PER_MB = 1e6

_ACTIVATION_SCALE_BYTES = 4
_ACTIVATION_ZERO_POINT_BYTES = 1


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """Bytes of a plan.

    Attributes:
        model_size_bytes: The stored model: the three parts below.
        weight_bytes: Packed codes of the weights of all operations, or 4 bytes each where they stay in floating point.
        scale_bytes: Scales and zero points of weights and of input activations.
        float_bytes: Biases, norms, position embeddings and all other parameters, 4 bytes each.
        peak_activation_bytes: Most bytes of intermediate tensors at the same time, by the rules of
            ``evoquant.hardware.tensors``.
        compression_ratio: 4 bytes for every parameter, divided by ``model_size_bytes``.
    """

    model_size_bytes: int
    weight_bytes: int
    scale_bytes: int
    float_bytes: int
    peak_activation_bytes: int
    compression_ratio: float


def memory(
    graph: ModelGraph, plan: Mapping[str, LayerQuantConfig], *, tensors: TensorTable | None = None
) -> MemoryCost:
    """Memory of the plan as it is stored.

    Args:
        graph: The model.
        plan: Precision of every operation.
        tensors: The tensor table of the graph where the caller has it already.
    """
    sizes = [op_bytes(op, plan[op.name]) for op in graph.ops]
    bits = np.array([plan[op.name].activation_bits for op in graph.ops], dtype=np.int64)
    peak = int((tensors or TensorTable(graph)).peak_bytes(bits))
    return memory_cost(graph, sum(codes for codes, _ in sizes), sum(scales for _, scales in sizes), peak)


def memory_cost(graph: ModelGraph, codes: int, scales: int, peak: int) -> MemoryCost:
    """Put the sums over the operations together with what does not depend on the plan."""
    weights = sum(op.weight_count for op in graph.ops)
    remaining = FLOAT_BYTES * max(graph.parameters - weights, 0)
    size = codes + scales + remaining
    ratio = (FLOAT_BYTES * weights + remaining) / size if size else 1.0
    return MemoryCost(size, codes, scales, remaining, peak, ratio)


def op_bytes(op: Op, config: LayerQuantConfig) -> tuple[int, int]:
    """Bytes of the weight codes of an operation, and of its scales and zero points.

    Each quantized input has one scale (4 bytes) and, unless symmetric, one zero point (1 byte); so has the second
    operand of a matmul, without zero point.
    """
    total = weight_bytes(op, config)
    codes = 0 if op.kind is OpKind.MATMUL else _code_bytes(op.weight_shape, config.weight_bits)
    scales = total - codes
    if config.activation_bits < FLOAT_BITS:
        scales += _ACTIVATION_SCALE_BYTES + (0 if config.use_symmetric else _ACTIVATION_ZERO_POINT_BYTES)
        if op.kind is OpKind.MATMUL:
            scales += _ACTIVATION_SCALE_BYTES
    return codes, scales


def _code_bytes(shape: tuple[int, ...], bits: int) -> int:
    return shape[0] * -(-prod(shape[1:]) * bits // 8)
