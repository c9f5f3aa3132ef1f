"""What an operation has to do, whatever executes it: its class, and the values it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import prod

from evoquant.types.graph import Op, OpKind
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig

SPECIAL_FUNCTIONS = frozenset(
    {"softmax", "layer_norm", "group_norm", "silu", "gelu", "sigmoid", "tanh", "exp", "rsqrt", "sqrt", "div"}
)
"""Elementwise work whose arithmetic takes longer than to move its values: an exponential, a division or a root each."""


class WorkClass(StrEnum):
    """Operations of one class use about the same share of a device's peak rate."""

    DENSE = "dense"
    POINTWISE = "pointwise"
    DEPTHWISE = "depthwise"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"


def work_class(op: Op) -> WorkClass:
    """The class of an operation.

    ``attention`` is a matmul of two activations, ``depthwise`` has one input channel per group, ``pointwise`` are 1×1
    convolutions and linear layers, all others are ``dense``.
    """
    if op.kind is OpKind.MATMUL:
        return WorkClass.ATTENTION
    if op.geometry is None:
        return WorkClass.POINTWISE
    if is_depthwise(op):
        return WorkClass.DEPTHWISE
    return WorkClass.POINTWISE if op.geometry.kernel == (1, 1) else WorkClass.DENSE


def is_depthwise(op: Op) -> bool:
    """Whether each group of a convolution reads one input channel only."""
    return op.geometry is not None and op.geometry.groups > 1 and op.weight_shape[1] == 1


def elements(shape: Sequence[int]) -> int:
    """Number of values of a tensor of this shape."""
    return prod(shape)


def read_elements(op: Op) -> int:
    """Activations that the operation reads: its input, and of a matmul its second operand too."""
    second = elements(op.weight_shape) if op.kind is OpKind.MATMUL else 0
    return elements(op.input_shape) + second


def stored_bytes(bits: int, float_bytes: int = 4) -> int:
    """Bytes that a value which is not packed takes: its bits in whole bytes; ``float_bytes`` if it is not quantized."""
    return float_bytes if bits >= FLOAT_BITS else -(-bits // 8)


def precision_label(config: LayerQuantConfig) -> str:
    """``w4a8``, ``w4a32`` for quantized weights with float activations, ``fp32`` for neither quantized."""
    return "fp32" if config.is_float else f"w{config.weight_bits}a{config.activation_bits}"
