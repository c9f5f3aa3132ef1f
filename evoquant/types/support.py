"""Which precisions an operation can have at all, on any device. No torch."""

from __future__ import annotations

from math import prod

from evoquant.errors import PrecisionError
from evoquant.types.graph import OpKind, Role
from evoquant.types.precision import (
    FLOAT_BITS,
    LLOYD_BITS,
    MAX_LOG2_BITS,
    LayerQuantConfig,
    QuantizationGranularity,
    QuantizationScheme,
)
from evoquant.types.storage import group_size_problem

LOG2_SATURATION = (
    f"at most {MAX_LOG2_BITS} bits, but got {{bits}}: codes for whole octaves stay near 14 dB of signal to noise at "
    "any width, less than 4 uniform bits give. Use 'uniform'"
)
UNSIGNED_ONLY_ROLE = Role.ATTENTION_AV
STEP_SCHEMES = (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)
"""Equal steps; of weights the only ones whose range a calibration method sets."""
UNEVEN_ACTIVATIONS = (QuantizationScheme.LOG2, QuantizationScheme.LLOYD)
"""Found in one way, whatever the calibration method."""
FIXED_BITS = {QuantizationScheme.NORMAL: 4, QuantizationScheme.TERNARY: 2, QuantizationScheme.BINARY: 1}


def check_supported(config: LayerQuantConfig, op_kind: OpKind, role: Role, weight_shape: tuple[int, ...]) -> None:
    """Refuse a precision that has no quantizer; every other one works.

    This is independent of the device: a hardware model may refuse more.

    Args:
        config: The precision asked for.
        op_kind: What the operation computes.
        role: Its part in the network: only attention·v reads the output of a softmax.
        weight_shape: Shape of its weight, output channels first; of the second operand for a matmul.

    Raises:
        PrecisionError: With the reason and with what to use instead.
    """
    problem = support_problem(config, op_kind, role, weight_shape)
    if problem is not None:
        raise PrecisionError(problem)


def support_problem(config: LayerQuantConfig, op_kind: OpKind, role: Role, weight_shape: tuple[int, ...]) -> str | None:
    """The reason why ``check_supported`` refuses, or None where it does not."""
    if op_kind is OpKind.MATMUL:
        second = _matmul_problem(config)
    else:
        second = _weight_problem(config) or _group_problem(config, weight_shape)
    return second or _activation_problem(config, role)


def _weight_problem(config: LayerQuantConfig) -> str | None:
    scheme, bits = config.weight_scheme, config.weight_bits
    if scheme in STEP_SCHEMES:
        if bits == 1:
            return f"weight_scheme '{scheme.value}' needs at least 2 bits, but got 1. Use 'binary'."
        if bits == FLOAT_BITS and scheme is not QuantizationScheme.UNIFORM:
            return _float_problem("weight", scheme)
        return None
    if scheme is QuantizationScheme.LLOYD:
        return "weight_scheme 'lloyd' exists for activations only. Use 'uniform'."
    if bits == FLOAT_BITS:
        return _float_problem("weight", scheme)
    if not config.weight_symmetric:
        return f"weight_scheme '{scheme.value}' has no zero point, but weight_symmetric is false. Set it to true."
    if scheme is QuantizationScheme.LOG2:
        if bits > MAX_LOG2_BITS:
            return f"weight_scheme 'log2' takes {LOG2_SATURATION.format(bits=bits)}."
        if bits < 2:
            return "weight_scheme 'log2' needs at least 2 bits (sign and zero are codes), but got 1. Use 'binary'."
        return None
    if bits != FIXED_BITS[scheme]:
        fixed = FIXED_BITS[scheme]
        return f"weight_scheme '{scheme.value}' has weight_bits {fixed}, but got {bits}. Use {fixed}."
    return None


def _float_problem(side: str, scheme: QuantizationScheme) -> str:
    return (
        f"{side}_bits {FLOAT_BITS} stays in floating point, where {side}_scheme '{scheme.value}' means nothing. "
        "Use 'uniform'."
    )


def _group_problem(config: LayerQuantConfig, weight_shape: tuple[int, ...]) -> str | None:
    if config.group_size is None:
        return None
    columns = prod(weight_shape[1:])
    if config.group_size < 1 or columns % config.group_size:
        return group_size_problem(columns, config.group_size)
    return None


def _matmul_problem(config: LayerQuantConfig) -> str | None:
    if config.weight_bits != config.activation_bits:
        return (
            "Both operands of an attention matmul are activations, so weight_bits must equal activation_bits, "
            f"but got {config.weight_bits} and {config.activation_bits}."
        )
    if config.weight_scheme is not QuantizationScheme.UNIFORM or not config.weight_symmetric:
        symmetry = "symmetric" if config.weight_symmetric else "asymmetric"
        return (
            "The second operand of an attention matmul is quantized 'uniform' and symmetric, "
            f"but got '{config.weight_scheme.value}', {symmetry}."
        )
    if config.granularity is QuantizationGranularity.PER_GROUP:
        return "An attention matmul stores no weights to group: use 'per_tensor' or 'per_channel' (one scale per head)."
    return None


def _activation_problem(config: LayerQuantConfig, role: Role) -> str | None:
    scheme, bits = config.activation_scheme, config.activation_bits
    if scheme is QuantizationScheme.UNIFORM:
        return None
    if bits == FLOAT_BITS:
        return _float_problem("activation", scheme)
    if scheme is QuantizationScheme.POWER_OF_TWO:
        return None
    if scheme is QuantizationScheme.LLOYD:
        return _lloyd_problem(config)
    if scheme is not QuantizationScheme.LOG2:
        return f"activation_scheme '{scheme.value}' exists for weights only. Use 'uniform'."
    if role is not UNSIGNED_ONLY_ROLE:
        return (
            f"activation_scheme 'log2' is for the output of a softmax, which role '{UNSIGNED_ONLY_ROLE.value}' reads, "
            f"but the role is '{role.value}'. Use 'uniform'."
        )
    if bits > MAX_LOG2_BITS:
        return f"activation_scheme 'log2' takes {LOG2_SATURATION.format(bits=bits)}."
    return None


def _lloyd_problem(config: LayerQuantConfig) -> str | None:
    if config.activation_bits not in LLOYD_BITS:
        return (
            f"activation_scheme 'lloyd' has {LLOYD_BITS[0]} to {LLOYD_BITS[-1]} bits, "
            f"but got {config.activation_bits}. Use 'uniform'."
        )
    if config.use_symmetric:
        return "activation_scheme 'lloyd' has a zero point, but use_symmetric is true. Set it to false."
    return None
