"""Bytes that a quantized weight takes when it is stored: codes, scales and zero points. No torch."""

from __future__ import annotations

from math import prod

from evoquant.errors import PrecisionError
from evoquant.types.graph import Op, OpKind
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig, QuantizationGranularity, QuantizationScheme

FLOAT_BYTES = 4
EXPONENT_BYTES = 1


def weight_bytes(op: Op, config: LayerQuantConfig) -> int:
    """Bytes of the stored weight of an operation; 0 for a matmul, which stores none. The bias is not counted.

    See ``packed_bytes`` for what is counted.
    """
    return 0 if op.kind is OpKind.MATMUL else packed_bytes(op.weight_shape, config)


def packed_bytes(shape: tuple[int, ...], config: LayerQuantConfig) -> int:
    """Bytes of a weight of this shape at this precision.

    * Codes: ``weight_bits`` each; every row (output channel) is padded to a whole byte. Sign and zero are inside the
      bits of a code, in each scheme; ternary codes take 2 bits, binary codes 1.
    * Scales: 4 bytes each (fp32), or 1 byte with a power-of-two scale (its exponent as int8).
    * Zero points: only with asymmetric weights, in ``weight_bits`` bits padded to whole bytes each.
    * 32 bits: 4 bytes for each weight, nothing else.

    Args:
        shape: Shape of the weight, output channels first.
        config: Precision; only its weight side is read.

    Raises:
        PrecisionError: If ``group_size`` does not divide the flattened row.
    """
    if config.weight_bits == FLOAT_BITS:
        return FLOAT_BYTES * prod(shape)
    rows, columns = shape[0], prod(shape[1:])
    codes = rows * ((columns * config.weight_bits + 7) // 8)
    is_exponent = config.weight_scheme is QuantizationScheme.POWER_OF_TWO
    per_scale = EXPONENT_BYTES if is_exponent else FLOAT_BYTES
    if not config.weight_symmetric:
        per_scale += (config.weight_bits + 7) // 8
    return codes + scale_count(shape, config) * per_scale


def scale_count(shape: tuple[int, ...], config: LayerQuantConfig) -> int:
    """Number of scales of a weight of this shape.

    Raises:
        PrecisionError: If ``group_size`` does not divide the flattened row.
    """
    if config.granularity is QuantizationGranularity.PER_TENSOR:
        return 1
    if config.group_size is None:
        return shape[0]
    columns = prod(shape[1:])
    if columns % config.group_size:
        raise PrecisionError(group_size_problem(columns, config.group_size))
    return shape[0] * (columns // config.group_size)


def group_size_problem(columns: int, group_size: int) -> str:
    """The message for a group size that does not divide a row, with the nearest ones that do."""
    divisors = [size for size in range(1, columns + 1) if columns % size == 0]
    nearest = sorted(sorted(divisors, key=lambda size: abs(size - group_size))[:2])
    return (
        f"group_size must divide the weights of one output channel, but {group_size} does not divide {columns}. "
        f"Use {' or '.join(map(str, nearest))}."
    )
