"""The engine class: a configuration in, genomes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from evoquant.config import (
    EMBEDDED,
    DataSpec,
    Experiment,
    ImageSet,
    ModelSpec,
    QuantizationEvolutionConfig,
    TargetSpec,
    dump_yaml,
    load_experiment,
)
from evoquant.data import ImageBatchSource
from evoquant.errors import ConfigurationError, InfeasibleError, RunError
from evoquant.evaluate import Workbench, analyze_sensitivity, prepare
from evoquant.models import EMBEDDED_MODEL
from evoquant.run import events, run_experiment
from evoquant.space import FitnessWeights, QuantizationGenome
from evoquant.types import ModelGraph
from evoquant.types.front import FrontDocument, ParetoPoint
from evoquant.types.target import HardwareTarget

Callback = Callable[[int, float, float], None]
"""Called after each generation with its number, the best fitness and the mean fitness of the front."""


class QuantizationEvolutionEngine:
    """Evolves the precision of every layer of one model.

    Args:
        config: Budget, limits, target and weights.
        model: The model; None takes the one that ``data`` names.
        data: Where model and images come from: an experiment, the path of its YAML file, or the three image sets
            ``calibration``, ``selection`` and ``test`` (then ``model`` must be given). None takes the embedded default.
        run_dir: The run folder.
    """

    def __init__(
        self,
        config: QuantizationEvolutionConfig | None = None,
        *,
        model: nn.Module | None = None,
        data: Experiment | str | Path | Mapping[str, ImageBatchSource] | None = None,
        run_dir: str | Path | None = None,
    ) -> None:
        self.config = config or QuantizationEvolutionConfig()
        self._model = model
        self._images = data if isinstance(data, Mapping) else None
        if self._images is not None and model is None:
            raise ConfigurationError("Image sets were given without a model. Give model=, or an experiment as data=.")
        self._experiment = _experiment(data)
        self._run_dir = None if run_dir is None else Path(run_dir)
        self._document: FrontDocument | None = None
        self._bench: Workbench | None = None
        self._weight_counts: dict[str, int] = {}

    @property
    def pareto_front(self) -> list[QuantizationGenome]:
        """Genomes of the front, the most faithful first; empty before ``run_evolution``."""
        return [] if self._document is None else [self._genome(point) for point in self._document.front]

    async def run_evolution(
        self,
        layer_names: Sequence[str] | None = None,
        max_generations: int | None = None,
        callback: Callback | None = None,
    ) -> dict[str, Any]:
        """Search.

        Args:
            layer_names: Layers that may be below 8 bits, by name or module path; all others stay at 8. None: all.
            max_generations: Instead of that of the configuration.
            callback: Told after each generation.

        Returns:
            ``generations``, ``evaluations``, ``hypervolume``, ``front_size``, ``seconds``, ``verdict`` and ``run_dir``.

        Raises:
            EvoQuantError: What is wrong, and what to do.
        """
        parts = self.config.parts()
        generations = self.config.max_generations if max_generations is None else max_generations
        budget = {"evaluations": generations * self.config.population_size}
        space = dict(parts.space)
        if layer_names is not None:
            space["rules"] = [*space["rules"], *await self._keep_others(layer_names)]
        is_host = self.config.hardware_target is HardwareTarget.HOST_CPU
        experiment = self._experiment.model_copy(
            update={
                "search": parts.search.model_copy(update=budget),
                "constraints": parts.constraints,
                "space": space,
                "target": TargetSpec(device=(parts.device,), latency="measured" if is_host else "roofline"),
                "evaluation": self._experiment.evaluation.model_copy(
                    update={"parallel_evaluations": parts.parallel_evaluations}
                ),
            }
        )
        reached = 0

        def on_event(event: events.Event) -> None:
            nonlocal reached
            if isinstance(event, events.GenerationFinished):
                reached = event.generation
                if callback is not None:
                    scores = [self._genome(point).fitness_score for point in event.front] or [0.0]
                    callback(event.generation, max(scores), sum(scores) / len(scores))

        self._weight_counts = {op.name: op.weight_count for op in (await self._prepared()).captured.graph.ops}
        self._document = await run_experiment(
            experiment, run_dir=self._run_dir, model=self._model, images=self._images, listener=on_event
        )
        return {
            "generations": reached,
            "evaluations": self._document.evaluations,
            "hypervolume": self._document.hypervolume,
            "front_size": len(self._document.front),
            "seconds": self._document.seconds,
            "verdict": self._document.verdict,
            "run_dir": str(self._run_dir or experiment.output.dir / experiment.name),
        }

    def get_best_genome(self) -> QuantizationGenome:
        """The member of the front with the best fitness score.

        Raises:
            RunError: Before ``run_evolution``.
            InfeasibleError: If nothing fulfils the constraints.
        """
        if self._document is None:
            raise RunError("There is no front yet: call run_evolution first.")
        if self._document.status == "infeasible":
            raise InfeasibleError("Nothing that was evaluated fulfils the constraints; pareto_front has the nearest.")
        return max(self.pareto_front, key=lambda genome: genome.fitness_score)

    async def analyze_sensitivity(self, layer_names: Sequence[str] | None = None) -> dict[str, float]:
        """How much each layer alone at 4 bits moves the output: 1 for the most sensitive one.

        Raises:
            ConfigurationError: If a name is not one of the model's.
        """
        bench = await self._prepared()
        graph = bench.captured.graph
        chosen = None if layer_names is None else _matching(graph, layer_names)
        groups = None if chosen is None else sorted({graph.op[name].group for name in chosen})
        entries = await asyncio.to_thread(analyze_sensitivity, bench.evaluator, graph, groups=groups)
        shares = {name: entry.share for entry in entries for name in entry.ops}
        return shares if chosen is None else {name: shares[name] for name in chosen}

    def export_quantization_config(
        self,
        genome: QuantizationGenome,
        output_path: str | Path,
        format: Literal["json", "yaml"] = "json",  # noqa: A002
    ) -> None:
        """Write a genome to a file that ``QuantizationGenome.from_dict`` reads back.

        Raises:
            ConfigurationError: If the format is neither json nor yaml.
        """
        if format not in ("json", "yaml"):
            raise ConfigurationError(f"format must be 'json' or 'yaml', but got {format!r}.")
        data = json.loads(json.dumps(genome.to_dict()))
        text = json.dumps(data, indent=1) + "\n" if format == "json" else dump_yaml(data)
        Path(output_path).write_text(text)

    async def _prepared(self) -> Workbench:
        if self._bench is None:
            self._bench = await asyncio.to_thread(prepare, self._experiment, model=self._model, images=self._images)
        return self._bench

    async def _keep_others(self, layer_names: Sequence[str]) -> list[dict[str, Any]]:
        """Rules that hold every layer at 8 bits that is not named."""
        graph = (await self._prepared()).captured.graph
        chosen = set(_matching(graph, layer_names))
        others = [op.name for op in graph.ops if op.name not in chosen]
        if not others:
            return []
        return [{"match": {"name": others}, "weights": ["uniform:8"], "activations": ["uniform:8"]}]

    def _genome(self, point: ParetoPoint) -> QuantizationGenome:
        weights = self.config.parts().fitness_weights
        return QuantizationGenome(
            layer_configs=point.plan,
            accuracy=point.objectives["top1"] / 100,
            inference_latency_ms=point.objectives["latency_ms"],
            memory_footprint_mb=point.objectives["memory_mb"],
            energy_per_inference_mj=point.objectives["energy_mj"],
            stored_bytes=int(point.objectives["model_size_bytes"]),
            weight_counts=self._weight_counts,
            fitness_weights=FitnessWeights(**weights),
        )


def _experiment(data: Experiment | str | Path | Mapping[str, ImageBatchSource] | None) -> Experiment:
    if isinstance(data, Experiment):
        return data
    if isinstance(data, str | Path):
        return load_experiment(data)
    return Experiment(
        schema_version=1,
        name="embedded",
        model=ModelSpec(name=EMBEDDED_MODEL, pretrained=True),
        data=DataSpec(
            calibration=ImageSet(images=f"{EMBEDDED}calibration"),
            selection=ImageSet(images=f"{EMBEDDED}selection"),
            test=ImageSet(images=f"{EMBEDDED}test"),
        ),
    )


def _matching(graph: ModelGraph, names: Sequence[str]) -> list[str]:
    """Operations that are named, or that lie inside a named module."""
    found: dict[str, None] = {}
    for name in names:
        inside = [op.name for op in graph.ops if op.name == name or op.name.startswith(f"{name}.")]
        if not inside:
            raise ConfigurationError(
                f"{graph.model} has no layer '{name}'. 'evoquant inspect' lists its layers; the first is "
                f"'{graph.ops[0].name}'."
            )
        found.update(dict.fromkeys(inside))
    return list(found)
