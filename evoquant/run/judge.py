"""What one plan is worth, outside of a search."""

from __future__ import annotations

from typing import Any

from evoquant.evaluate import Plan, Workbench
from evoquant.hardware import CostModel, load_device
from evoquant.run.latency import open_latency_model


def judge(bench: Workbench, plan: Plan, split: str) -> dict[str, Any]:
    """Accuracy, latency, energy and memory of one plan as plain JSON values.

    Args:
        bench: Model and images.
        plan: Precision of every operation.
        split: ``selection`` or ``test``.

    Raises:
        HardwareError: If the device cannot execute the plan, or has no latency for it.
        ModelError: If the quantized model's output is not finite.
    """
    accuracy = bench.evaluator.evaluate(plan, split=split)
    target = bench.experiment.target
    device = load_device(target.device[0])
    graph = bench.captured.graph
    model = open_latency_model(target, device, graph, {name: [config] for name, config in plan.items()})
    costs = CostModel(graph, device, model).costs(plan)
    return {
        "images": accuracy.images,
        "fp32_top1": accuracy.fp32_top1,
        "top1": accuracy.top1,
        "top1_ci95": list(accuracy.top1_ci95),
        "drop_pp": accuracy.drop_pp,
        "drop_stderr_pp": accuracy.drop_stderr_pp,
        "kl": accuracy.kl,
        "kl_stderr": accuracy.kl_stderr,
        "agreement": accuracy.agreement,
        "device": device.name,
        "latency_ms": costs.latency_ms,
        "latency_spread_ms": costs.latency_spread_ms,
        "latency_kind": costs.latency_kind,
        "energy_mj": costs.energy_mj,
        "energy_low_mj": costs.energy_low_mj,
        "energy_high_mj": costs.energy_high_mj,
        "model_size_bytes": costs.model_size_bytes,
        "peak_activation_bytes": costs.peak_activation_bytes,
        "average_bits": costs.average_bits,
    }
