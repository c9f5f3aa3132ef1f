"""Which precisions make sense for an operation, and the one form that stands for all that mean the same."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from evoquant.types import (
    FLOAT_BITS,
    CalibrationMethod,
    LayerQuantConfig,
    Op,
    OpKind,
    QuantizationGranularity,
    QuantizationScheme,
    Role,
)
from evoquant.types.precision import FLOAT
from evoquant.types.support import UNEVEN_ACTIVATIONS, support_problem

_DEFAULT = LayerQuantConfig()


_CODEBOOKS = (
    QuantizationScheme.NORMAL,
    QuantizationScheme.LOG2,
    QuantizationScheme.TERNARY,
    QuantizationScheme.BINARY,
)


def refusal(op: Op, config: LayerQuantConfig) -> str | None:
    """Why this operation cannot have this precision on any target, or None if it can.

    Args:
        op: The operation.
        config: A precision in canonical form (see ``canonical``).

    Returns:
        A reason without the name of the operation, or None.
    """
    return support_problem(config, op.kind, op.role, op.weight_shape)


def canonical(op: Op, config: LayerQuantConfig) -> LayerQuantConfig:
    """The one form of all precisions that compute the same as this one, so that equal work has equal names.

    * What stays in floating point has no scheme, symmetry, granularity or calibration.
    * The operands of a matmul are both activations: its weight bits follow the activation bits, uniformly.
    * Log2 activations have no zero point to choose. A percentile belongs to its calibration method alone.
    * The order of scores is that of queries and keys; elsewhere it means their effect on the output.
    * One group per channel is a scale per channel.
    * Scales of normal, log2, ternary and binary weights are found by square error, log2 and lloyd activations in one
      way: beside each other, or beside floating-point activations, a calibration method has nothing to set.
    """
    if op.kind is OpKind.MATMUL:
        config = replace(
            config,
            weight_bits=config.activation_bits,
            weight_scheme=QuantizationScheme.UNIFORM,
            weight_symmetric=True,
        )
    if config.is_float:
        return FLOAT
    if config.weight_bits == FLOAT_BITS:
        config = replace(
            config,
            weight_scheme=_DEFAULT.weight_scheme,
            weight_symmetric=_DEFAULT.weight_symmetric,
            granularity=_DEFAULT.granularity,
            group_size=None,
        )
    if config.activation_bits == FLOAT_BITS:
        config = replace(config, activation_scheme=_DEFAULT.activation_scheme, use_symmetric=_DEFAULT.use_symmetric)
    is_uneven = config.activation_scheme in UNEVEN_ACTIVATIONS
    if is_uneven:
        config = replace(config, use_symmetric=_DEFAULT.use_symmetric)
    if config.weight_scheme in _CODEBOOKS and (is_uneven or config.activation_bits == FLOAT_BITS):
        config = replace(config, calibration_method=_DEFAULT.calibration_method)
    if config.calibration_method is CalibrationMethod.RANKING and op.role is not Role.ATTENTION_QK:
        config = replace(config, calibration_method=CalibrationMethod.FISHER)
    if config.calibration_method is not CalibrationMethod.PERCENTILE:
        config = replace(config, percentile=_DEFAULT.percentile)
    if op.kind is not OpKind.MATMUL and config.group_size == prod(op.weight_shape[1:]):
        config = replace(config, granularity=QuantizationGranularity.PER_CHANNEL, group_size=None)
    return config
