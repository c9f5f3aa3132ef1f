"""Plans that are known before any search: one precision for all operations, and the published hybrid rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evoquant.errors import UnknownNameError
from evoquant.space.legality import canonical
from evoquant.types import (
    FLOAT_BITS,
    CalibrationMethod,
    LayerQuantConfig,
    ModelGraph,
    Op,
    OpKind,
    QuantizationGranularity,
    QuantizationScheme,
    Role,
)
from evoquant.types.precision import LLOYD_BITS
from evoquant.types.support import FIXED_BITS

EDGE_ROLES = (Role.STEM, Role.HEAD)

UNIFORM_PRESETS: Mapping[str, tuple[int, int]] = {
    "fp32": (FLOAT_BITS, FLOAT_BITS),
    "w8a8": (8, 8),
    "w6a6": (6, 6),
    "w4a8": (4, 8),
    "w4a4": (4, 4),
}
"""Weight and activation bits of the uniform presets."""

PRESET_NAMES = (*UNIFORM_PRESETS, "efficientquant")


def uniform_plan(
    graph: ModelGraph, weight_bits: int, activation_bits: int, *, edge_bits: int = 8
) -> dict[str, LayerQuantConfig]:
    """The same uniform precision for all operations, weights per channel, ranges by their effect on the output.

    Activations below 8 bits have the levels that cost least for their values.

    Args:
        graph: The model.
        weight_bits: Bits of weights.
        activation_bits: Bits of activations.
        edge_bits: Stem and head have at least so many bits.
    """
    return {op.name: _uniform(op, weight_bits, activation_bits, edge_bits) for op in graph.ops}


def _uniform(op: Op, weight_bits: int, activation_bits: int, edge_bits: int) -> LayerQuantConfig:
    least = edge_bits if op.role in EDGE_ROLES else 0
    config = LayerQuantConfig(
        weight_bits=max(weight_bits, least),
        activation_bits=max(activation_bits, least),
        granularity=_granularity(op),
        calibration_method=CalibrationMethod.FISHER,
    )
    if config.activation_bits in LLOYD_BITS:
        config = replace(config, activation_scheme=QuantizationScheme.LLOYD)
    return canonical(op, config)


def equal_steps_plan(graph: ModelGraph, plan: Mapping[str, LayerQuantConfig]) -> dict[str, LayerQuantConfig]:
    """The same plan with uniform codes for all activations, the output of a softmax too."""
    uniform = QuantizationScheme.UNIFORM
    return {op.name: canonical(op, replace(plan[op.name], activation_scheme=uniform)) for op in graph.ops}


def _granularity(op: Op) -> QuantizationGranularity:
    is_matmul = op.kind is OpKind.MATMUL
    return QuantizationGranularity.PER_TENSOR if is_matmul else QuantizationGranularity.PER_CHANNEL


def efficientquant_plan(graph: ModelGraph, classes: Mapping[str, str] | None = None) -> dict[str, LayerQuantConfig]:
    """The published hybrid rule: uniform 8 bits for the convolutional part, log2 for the transformer part.

    Log2 values with integer exponents gain nothing above 4 bits, so the weights of the transformer part and the
    outputs of softmax have 4-bit log2 codes here; its other activations have uniform 8 bits.

    Args:
        graph: The model.
        classes: ``cnn`` or ``transformer`` for each operation; without it the published rule decides by type:
            convolutions are ``cnn``, linear layers and attention matmuls ``transformer``.

    References:
        S. Saha and L. Xu, "EfficientQuant", T4V workshop at CVPR 2025, https://arxiv.org/abs/2506.11093.
    """
    by_type = {op.name: "cnn" if op.kind is OpKind.CONV else "transformer" for op in graph.ops}
    named = by_type if classes is None else classes
    return {op.name: canonical(op, _efficientquant(op, named[op.name])) for op in graph.ops}


def _efficientquant(op: Op, part: str) -> LayerQuantConfig:
    if part == "cnn":
        return LayerQuantConfig(granularity=_granularity(op))
    if op.kind is not OpKind.MATMUL:
        return LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.LOG2)
    if op.role is Role.ATTENTION_AV:
        return LayerQuantConfig(
            activation_bits=4,
            activation_scheme=QuantizationScheme.LOG2,
            granularity=QuantizationGranularity.PER_TENSOR,
        )
    return LayerQuantConfig(granularity=QuantizationGranularity.PER_TENSOR)


def preset_plan(name: str, graph: ModelGraph, classes: Mapping[str, str] | None = None) -> dict[str, LayerQuantConfig]:
    """The plan of a preset by its name: ``fp32``, ``w8a8``, ``w6a6``, ``w4a8``, ``w4a4`` or ``efficientquant``.

    Weights of 4 bits have the levels of ``NORMAL``: kernels decode 4 bits by a table anyway.

    Raises:
        UnknownNameError: If there is no such preset.
    """
    if name == "efficientquant":
        return efficientquant_plan(graph, classes)
    if name not in UNIFORM_PRESETS:
        raise UnknownNameError("preset", name, PRESET_NAMES)
    plan = uniform_plan(graph, *UNIFORM_PRESETS[name])
    return {op.name: canonical(op, _with_normal_levels(plan[op.name])) for op in graph.ops}


def _with_normal_levels(config: LayerQuantConfig) -> LayerQuantConfig:
    has_levels = config.weight_bits == FIXED_BITS[QuantizationScheme.NORMAL]
    return replace(config, weight_scheme=QuantizationScheme.NORMAL) if has_levels else config


def presets(graph: ModelGraph, classes: Mapping[str, str] | None = None) -> dict[str, dict[str, LayerQuantConfig]]:
    """All presets by name."""
    return {name: preset_plan(name, graph, classes) for name in PRESET_NAMES}
