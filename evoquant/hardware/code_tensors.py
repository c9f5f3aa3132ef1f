"""Tensors that kernels hand over as codes of 8 bits: from one product to the only other one that reads it."""

from __future__ import annotations

from evoquant.hardware.tensors import TensorTable
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme
from evoquant.types.graph import ModelGraph, Op, OpKind

LARGEST_CODE_BITS = 8
_BYTE_SCHEMES = (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO, QuantizationScheme.LLOYD)


def code_edges(graph: ModelGraph) -> dict[str, Op]:
    """By the node of a product, the product that alone reads its result, after whatever its kernel applies to it.

    Both are convolutions or both linear layers, so that the second finds the values where it wants them.
    """
    ops = {op.node: op for op in graph.ops}
    results = TensorTable(graph).results
    found: dict[str, Op] = {}
    for op in graph.ops:
        read_by = graph.readers[results[op.node]]
        reader = ops.get(read_by[0]) if len(read_by) == 1 else None
        if op.kind is not OpKind.MATMUL and reader is not None and reader.kind is op.kind:
            found[op.node] = reader
    return found


def reads_codes(config: LayerQuantConfig) -> bool:
    """Whether a product multiplies bytes at this precision."""
    is_small = max(config.weight_bits, config.activation_bits) <= LARGEST_CODE_BITS
    return is_small and config.activation_scheme in _BYTE_SCHEMES


def writes_codes(op: Op, config: LayerQuantConfig) -> bool:
    """Whether a product can round its result to codes: not where it adds up groups of scales along its input."""
    size = config.group_size or 0
    return config.granularity is not QuantizationGranularity.PER_GROUP or size >= (
        op.weight_shape[1] if op.weight_shape else 0
    )
