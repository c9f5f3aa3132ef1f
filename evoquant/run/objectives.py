"""From accuracy and costs to the figures of a candidate: those that are minimised, and those stated beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoquant.evaluate import Accuracy, Plan, Standing
from evoquant.hardware import BYTES_PER_MB, Costs
from evoquant.types import ModelGraph

EVALUATED = ("kl", "accuracy_drop_pp")
"""The objectives that need an evaluation; all others are costs."""

KL_LIMIT = 0.25
"""Divergence, in nats, beyond which a plan is useless and adds nothing to the hypervolume."""


def reference_limits(objectives: Sequence[str]) -> list[float | None]:
    """Largest useful coordinate of the reference point for each objective."""
    return [KL_LIMIT if name == "kl" else None for name in objectives]


def shift(standing: Standing | None, objectives: Sequence[str]) -> NDArray[np.float64]:
    """What the place of an architecture among others adds to each objective of all of its plans; 0 without others."""
    added = {} if standing is None else {"kl": standing.own.offset, "accuracy_drop_pp": standing.top1_behind_pp}
    return np.array([added.get(name, 0.0) for name in objectives], dtype=np.float64)


def figures(accuracy: Accuracy, costs: Costs) -> dict[str, float]:
    """Every figure of a candidate by name."""
    return {
        "kl": accuracy.kl,
        "kl_stderr": accuracy.kl_stderr,
        "accuracy_drop_pp": accuracy.drop_pp,
        "accuracy_drop_stderr_pp": accuracy.drop_stderr_pp,
        "top1": accuracy.top1,
        **cost_figures(costs),
    }


def cost_figures(costs: Costs) -> dict[str, float]:
    """The figures that need no evaluation."""
    return {
        "latency_ms": costs.latency_ms,
        "latency_spread_ms": costs.latency_spread_ms,
        "energy_mj": costs.energy_mj,
        "energy_low_mj": costs.energy_low_mj,
        "energy_high_mj": costs.energy_high_mj,
        "memory_mb": costs.memory_mb,
        "model_size_bytes": costs.model_size_bytes,
        "model_size_mb": costs.model_size_bytes / BYTES_PER_MB,
        "peak_activation_bytes": costs.peak_activation_bytes,
        "compression_ratio": costs.compression_ratio,
        "average_bits": costs.average_bits,
        "bops": costs.bops,
    }


def violations(values: Mapping[str, float], limits: Mapping[str, float]) -> list[float]:
    """How far each limit is exceeded, as a share of the limit; at most 0 where it is kept."""
    return [(values[name] - limit) / max(abs(limit), 1e-12) for name, limit in limits.items()]


def vector(values: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...]:
    """The minimised figures, in order."""
    return tuple(float(values[name]) for name in objectives)


def plan_name(plan: Plan, graph: ModelGraph) -> str:
    """A short name such as ``W4.6A7.9``: mean bits of weights, and of activations by MACs."""
    weights = sum(op.weight_count for op in graph.ops) or 1
    weight_bits = sum(op.weight_count * plan[op.name].weight_bits for op in graph.ops) / weights
    activation_bits = sum(op.macs * plan[op.name].activation_bits for op in graph.ops) / max(graph.macs, 1)
    return f"W{weight_bits:.1f}A{activation_bits:.1f}"
