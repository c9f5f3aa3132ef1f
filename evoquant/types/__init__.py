"""Values that every layer shares: precision of a layer, the graph of a model. No torch."""

from evoquant.types.graph import ConvGeometry, Group, ModelGraph, Node, Op, OpKind, Role
from evoquant.types.precision import (
    FLOAT_BITS,
    CalibrationMethod,
    LayerQuantConfig,
    QuantizationGranularity,
    QuantizationScheme,
)

__all__ = [
    "FLOAT_BITS",
    "CalibrationMethod",
    "ConvGeometry",
    "Group",
    "LayerQuantConfig",
    "ModelGraph",
    "Node",
    "Op",
    "OpKind",
    "QuantizationGranularity",
    "QuantizationScheme",
    "Role",
]
