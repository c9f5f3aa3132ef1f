"""Parameters that belong to a whole plan, in place of those that each operation has for its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.fisher import OperandKey
from evoquant.quant import QuantParams


@dataclass(frozen=True, slots=True, eq=False)
class FittedParameters:
    """What was fitted to one plan; whatever is not in it is as in the search.

    Attributes:
        weights: By operation: the quantized weight, its scales, and the bias that goes with it.
        norms: Affine parameters of norms, by their path in the program. They stay in floating point.
        activations: How operands are quantized.
    """

    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[OperandKey, QuantParams] = field(default_factory=dict)
