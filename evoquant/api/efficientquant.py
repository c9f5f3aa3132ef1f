"""The structure-aware quantizer of the published EfficientQuant method, and ours, under its older class names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from evoquant.api.evolution import as_experiment
from evoquant.config import Experiment, TargetSpec, dump_yaml
from evoquant.data import ImageBatchSource
from evoquant.errors import ConfigurationError
from evoquant.evaluate import SimulatedModel, Workbench, prepare
from evoquant.hardware import legalise, load_device
from evoquant.run.judge import judge
from evoquant.space import canonical, preset_plan
from evoquant.types import LayerQuantConfig, QuantizationScheme, Role
from evoquant.types.target import HardwareTarget

Strategy = Literal["hybrid", "efficientquant", "uniform"]
_LOG2_BITS = 4


class EfficientQuantizer:
    """Quantizes a model once, by its structure, without a search.

    ``hybrid`` gives every operation uniform 8 bits and the output of every softmax a 4-bit logarithmic code, by role in
    the graph. ``efficientquant`` is the published rule by type. ``uniform`` has uniform 8 bits everywhere.

    Args:
        experiment: Model and images.
        strategy: Which rule.
        model: Used instead of the model that the experiment names.
        images: Used instead of its image sets.

    References:
        S. Saha and L. Xu, "EfficientQuant", T4V workshop at CVPR 2025, https://arxiv.org/abs/2506.11093.
    """

    def __init__(
        self,
        experiment: Experiment | Mapping[str, Any] | str | Path,
        *,
        strategy: Strategy = "hybrid",
        model: nn.Module | None = None,
        images: Mapping[str, ImageBatchSource] | None = None,
    ) -> None:
        if strategy not in ("hybrid", "efficientquant", "uniform"):
            raise ConfigurationError(f"strategy must be hybrid, efficientquant or uniform, but got {strategy!r}.")
        self.bench: Workbench = prepare(as_experiment(experiment), model=model, images=images)
        self.layer_configs: dict[str, LayerQuantConfig] = self._assigned(strategy)

    @property
    def layer_strategies(self) -> dict[str, str]:
        """``log2`` or ``uniform`` for each layer; assign ``layer_configs`` to change them."""
        log2 = QuantizationScheme.LOG2
        return {
            name: "log2" if log2 in (config.weight_scheme, config.activation_scheme) else "uniform"
            for name, config in self.layer_configs.items()
        }

    def quantize_hybrid_model(self) -> SimulatedModel:
        """The quantized model: takes images of shape (batch, channels, height, width) and returns logits."""
        simulated = SimulatedModel(self.bench.captured, self.bench.evaluator.operands)
        simulated.apply(self.layer_configs)
        return simulated

    def validate_quantized_model(self, *, split: Literal["selection", "test"] = "test") -> dict[str, float]:
        """Accuracy before and after, in [0, 1], on one image set.

        Returns:
            ``original_accuracy``, ``quantized_accuracy``, ``accuracy_loss_relative_percent``, ``kl`` and ``images``.
        """
        accuracy = self.bench.evaluator.evaluate(self.layer_configs, split=split)
        lost = 100 * accuracy.drop_pp / accuracy.fp32_top1 if accuracy.fp32_top1 else 0.0
        return {
            "original_accuracy": accuracy.fp32_top1 / 100,
            "quantized_accuracy": accuracy.top1 / 100,
            "accuracy_loss_relative_percent": lost,
            "kl": accuracy.kl,
            "images": accuracy.images,
        }

    def _assigned(self, strategy: Strategy) -> dict[str, LayerQuantConfig]:
        graph = self.bench.captured.graph
        if strategy == "efficientquant":
            return preset_plan("efficientquant", graph, self.bench.classes)
        plan = preset_plan("w8a8", graph)
        if strategy == "hybrid":
            log2 = LayerQuantConfig(activation_bits=_LOG2_BITS, activation_scheme=QuantizationScheme.LOG2)
            plan |= {op.name: canonical(op, log2) for op in graph.ops if op.role is Role.ATTENTION_AV}
        return plan


class EfficientQuantDeployment:
    """Takes a quantized model to a device.

    Args:
        quantizer: What was quantized.
    """

    def __init__(self, quantizer: EfficientQuantizer) -> None:
        self._quantizer = quantizer

    def quantize_for_edge(self, target: HardwareTarget) -> dict[str, LayerQuantConfig]:
        """The precision of every layer as the device executes it.

        Raises:
            HardwareError: If the device cannot execute a layer at all.
        """
        device = load_device(target.default_device)
        graph = self._quantizer.bench.captured.graph
        return {op.name: legalise(op, self._quantizer.layer_configs[op.name], device).config for op in graph.ops}

    def benchmark_on_device(self, target: HardwareTarget = HardwareTarget.HOST_CPU) -> dict[str, Any]:
        """Accuracy and costs; only the host's latency is measured, as ``latency_kind`` says."""
        bench = self._quantizer.bench
        latency: Literal["measured", "roofline"] = "measured" if target is HardwareTarget.HOST_CPU else "roofline"
        experiment = bench.experiment.model_copy(
            update={"target": TargetSpec(device=(target.default_device,), latency=latency)}
        )
        plan = self.quantize_for_edge(target)
        return judge(bench.for_experiment(experiment), plan, "test")

    def export_deployment_package(self, folder: str | Path, target: HardwareTarget = HardwareTarget.HOST_CPU) -> Path:
        """Write the precision of every layer and what it is worth to a folder; return the folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        plan = {name: config.to_dict() for name, config in self.quantize_for_edge(target).items()}
        (path / "plan.yaml").write_text(dump_yaml({"schema_version": 1, "plan": plan}))
        (path / "evaluation.yaml").write_text(dump_yaml(self.benchmark_on_device(target)))
        return path
