"""What was predicted for a point of a run, beside what its packed model does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evoquant import kernels
from evoquant.deploy.folder import file_bytes
from evoquant.deploy.measurement import compare_with_table
from evoquant.deploy.packed_model import PackedModel
from evoquant.errors import ModelError
from evoquant.evaluate import LabelledImages, Plan, Workbench
from evoquant.hardware import Device, load_device
from evoquant.hardware.measured import MeasuredLatency, reachable_cases
from evoquant.hardware.memory import memory
from evoquant.hardware.table import Case, LatencyTable
from evoquant.run.latency import latency_source
from evoquant.types import ModelGraph
from evoquant.types.storage import weight_bytes

ROUNDING_SHARE = 0.5
"""Largest difference of packed to simulated logits, as a share of that of simulated to floating-point logits.

Both are root mean squares over all images. The two models take the same sums in another order, which moves a value on
the edge of two codes by one step; such a step is of the size of the quantization error, and happens to few values.
On the embedded default at about 5-bit weights packed and simulated logits differ by a twelfth of the quantization
error, half of what two convolution libraries of torch differ by in the simulation itself.
"""
FLOAT_ROUNDING = 1e-4
"""The same for a plan without quantization, as a share of the logits' standard deviation."""
NEAR_TIE = 0.01
"""Two classes are tied where their simulated logits differ by less than this share of the logits' standard deviation;
then a step of rounding may exchange them."""
LATENCY_TOLERANCE = 0.10
"""Largest relative difference of the sum of kernels from the measured packed model."""
SIZE_TOLERANCE = 0.05
"""Largest relative difference of the predicted from the stored size. Predicted are all parameters of the original;
stored are those of the captured model, where batch normalizations are folded."""


def verify_packed(
    model: PackedModel,
    bench: Workbench,
    *,
    predicted: Mapping[str, float] | None = None,
    folder: Path | None = None,
    split: str = "test",
    rounds: int = 15,
) -> dict[str, Any]:
    """Compare a packed model with the simulation, the latency table and the predicted size.

    Args:
        model: The packed model.
        bench: Model, images and statistics that it was made from.
        predicted: The objectives of the point, for the latency that the search saw.
        folder: Where it is stored, for the sizes of the files.
        split: Image set.
        rounds: Samples of the model and of each of its kernels.

    Returns:
        ``accuracy``, ``latency``, ``size`` (each with ``passed``), ``fallbacks``, ``not_measured`` (by name, with the
        reason) and ``passed``; plain JSON values.

    Raises:
        ModelError: If the packed model was made from another model.
    """
    expected, got = bench.identity["program"], model.recipe.provenance.get("program")
    if got != expected:
        raise ModelError(
            f"The packed model of '{model.recipe.model}' was made from other weights ({got}) than this experiment "
            f"loads ({expected}). Export it again."
        )
    not_measured = {"energy": "no meter", "peak memory": "kernels keep float32 activations, the figure is of codes"}
    record: dict[str, Any] = {
        "accuracy": _accuracy(model, bench, split),
        "size": _size(model, bench.captured.graph, folder),
        "fallbacks": dict(model.fallbacks),
    }
    reason = _why_no_latency(bench, model)
    if reason is None:
        record["latency"] = _latency(model, bench, predicted, split, rounds)
    else:
        not_measured["latency"] = reason
    parts = [record[name]["passed"] for name in ("accuracy", "size", "latency") if name in record]
    return {**record, "not_measured": not_measured, "passed": all(parts)}


def _accuracy(model: PackedModel, bench: Workbench, split: str) -> dict[str, Any]:
    images = bench.evaluator.images(split)
    simulated = bench.evaluator.logits(model.plan, split=split)
    packed = torch.cat([model(batch) for batch in images.batches])
    return compare_packed(packed, simulated, images)


def compare_packed(packed: Tensor, simulated: Tensor, images: LabelledImages) -> dict[str, Any]:
    """Judge packed against simulated logits, both of shape (images, classes)."""
    spread = float(simulated.std())
    difference = packed - simulated
    rounding = _root_mean_square(difference)
    allowed = max(ROUNDING_SHARE * _root_mean_square(simulated - images.reference), FLOAT_ROUNDING * spread)
    differing = (packed.argmax(1) != simulated.argmax(1)).nonzero().flatten()
    best = simulated.topk(2, dim=1).values
    margins = (best[:, 0] - best[:, 1])[differing] / spread
    near_ties = int((margins < NEAR_TIE).sum())
    return {
        "images": len(simulated),
        "simulated_top1": _top1(simulated, images.labels),
        "packed_top1": _top1(packed, images.labels),
        "same_top1_on_all_images": not len(differing),
        "differing_images": differing.tolist(),
        "differing_near_ties": near_ties,
        "logit_difference_rms": rounding,
        "logit_difference_max": float(difference.abs().max()),
        "logit_difference_allowed_rms": allowed,
        "logit_standard_deviation": spread,
        "near_tie_share": NEAR_TIE,
        "passed": rounding <= allowed and near_ties == len(differing),
    }


def _root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _top1(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())


def _size(model: PackedModel, graph: ModelGraph, folder: Path | None) -> dict[str, Any]:
    plan = model.plan
    predicted_weights = sum(weight_bytes(op, plan[op.name]) for op in graph.ops)
    stored_weights = sum(weight.stored_bytes for weight in model.recipe.weights.values())
    predicted = memory(graph, plan).model_size_bytes
    quantizers = sum(
        (4 + (not config.use_symmetric)) * (config.activation_bits < 32) for config in plan.values()
    )  # fmt: skip
    stored = model.recipe.stored_bytes + quantizers
    return {
        "predicted_weight_bytes": predicted_weights,
        "stored_weight_bytes": stored_weights,
        "predicted_bytes": predicted,
        "stored_bytes": stored,
        "ratio": predicted / stored,
        "tolerance": SIZE_TOLERANCE,
        "files": file_bytes(folder) if folder is not None else None,
        "passed": predicted_weights == stored_weights and abs(predicted / stored - 1) <= SIZE_TOLERANCE,
    }


def _why_no_latency(bench: Workbench, model: PackedModel) -> str | None:
    target = bench.experiment.target
    source = latency_source(target, target.device[0], load_device(target.device[0]))
    if source.name != "measured":
        return f"the search took it from another source: {source.told}"
    if model.fallbacks:
        return f"{len(model.fallbacks)} steps have no kernel, so the table has no time for them"
    return None


def _latency(
    model: PackedModel, bench: Workbench, predicted: Mapping[str, float] | None, split: str, rounds: int
) -> dict[str, Any]:
    """The packed model, and its kernels one by one, timed in alternating rounds."""
    target = bench.experiment.target
    device = load_device(target.device[0])
    graph = bench.captured.graph
    image = bench.evaluator.images(split).batches[0][:1]
    latency = MeasuredLatency(LatencyTable({}, target.threads, {}), device, kernels)
    found = compare_with_table(
        {"point": model}, image, latency, {"point": cases_of(graph, model.plan, device)}, graph,
        threads=target.threads, isa=device.isa, rounds=rounds,
    )["point"]  # fmt: skip
    searched = None if predicted is None else predicted.get("latency_ms")
    return {
        "predicted_ms": searched,
        "table_now_ms": found.table_ms,
        "measured": found.model.to_dict(),
        "clock": found.clock,
        "ratio": found.ratio,
        "drift": None if searched is None else found.table_ms / searched,
        "tolerance": LATENCY_TOLERANCE,
        "passed": abs(found.ratio - 1) <= LATENCY_TOLERANCE,
    }


def cases_of(graph: ModelGraph, plan: Plan, device: Device) -> list[Case]:
    """The kernels of one plan."""
    return list(reachable_cases(graph, {name: [config] for name, config in plan.items()}, device, kernels))
