"""What every latency model answers, and the models by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from evoquant.hardware.provenance import Kind
from evoquant.types.graph import ModelGraph
from evoquant.types.precision import LayerQuantConfig


@dataclass(frozen=True, slots=True)
class LatencyEstimate:
    """Time of one inference at batch size 1.

    Attributes:
        ms: The sum of the parts below and of what is paid once per inference.
        spread_ms: How much ``ms`` varies: the root of the summed squares of the interquartile ranges of what was
            measured; 0 for a prediction, whose error is not known.
        kind: ``measured`` if every part is a time taken on the device, else ``predicted``.
        per_op: Milliseconds of each operation.
        conversions_ms: Changes of precision between neighbours.
        float_ops_ms: What is not an operation and stays in floating point.
        rests_on: Kinds of the figures used, from the best known to the weakest.
    """

    ms: float
    spread_ms: float
    kind: Literal["measured", "predicted"]
    per_op: Mapping[str, float]
    conversions_ms: float
    float_ops_ms: float
    rests_on: tuple[Kind, ...]


class LatencyModel(Protocol):
    """Gives the latency of a plan on one device."""

    def latency(self, graph: ModelGraph, plan: Mapping[str, LayerQuantConfig]) -> LatencyEstimate:
        """Latency of the plan, legalised for the device.

        Raises:
            HardwareError: If an operation has no legal form, or a time is missing; names the operation.
        """
        ...
