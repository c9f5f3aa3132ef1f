import asyncio
import json

import numpy as np
import pytest

import evoquant
from evoquant import (
    EfficientQuantDeployment,
    EfficientQuantizer,
    HardwareTarget,
    QuantizationEvolutionConfig,
    QuantizationEvolutionEngine,
    QuantizationGenome,
)
from evoquant.config import load_yaml
from evoquant.errors import ConfigurationError, RunError


@pytest.fixture(scope="module")
def evolved(tmp_path_factory):
    """An engine that has run on a small version of the embedded default, and what its callback was told."""
    folder = tmp_path_factory.mktemp("engine")
    told = []

    def make(experiment):
        if not told:
            config = QuantizationEvolutionConfig(
                population_size=5, max_generations=2, hardware_target=HardwareTarget.ARM_DOT, parallel_evaluations=2
            )
            make.engine = QuantizationEvolutionEngine(config, data=experiment, run_dir=folder)
            make.result = asyncio.run(make.engine.run_evolution(callback=lambda *values: told.append(values)))
        return make.engine, make.result, told

    return make


def test_the_public_names_are_there():
    for name in evoquant.__all__:
        assert getattr(evoquant, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        evoquant.missing  # noqa: B018


def test_an_engine_finds_a_front_of_genomes(small_experiment, evolved):
    engine, result, told = evolved(small_experiment)
    assert result["evaluations"] == 10
    assert [entry[0] for entry in told] == list(range(1, result["generations"] + 1))
    assert all(best >= mean for _, best, mean in told)
    best = engine.get_best_genome()
    assert best.fitness_score == max(genome.fitness_score for genome in engine.pareto_front)
    assert 0.0 <= best.accuracy <= 1.0
    assert best.compression_ratio > 2.0
    assert 4.0 <= best.average_bits <= 8.0
    assert best.inference_latency_ms > 0.0


def test_a_genome_survives_its_files(small_experiment, evolved, tmp_path):
    engine, _, _ = evolved(small_experiment)
    genome = engine.get_best_genome()
    engine.export_quantization_config(genome, tmp_path / "genome.json")
    engine.export_quantization_config(genome, tmp_path / "genome.yaml", format="yaml")
    assert QuantizationGenome.from_dict(json.loads((tmp_path / "genome.json").read_text())) == genome
    assert QuantizationGenome.from_dict(load_yaml(tmp_path / "genome.yaml").data) == genome
    with pytest.raises(ConfigurationError, match="format must be 'json' or 'yaml'"):
        engine.export_quantization_config(genome, tmp_path / "genome.toml", format="toml")


def test_genomes_vary_without_losing_their_layers(small_experiment, evolved):
    engine, _, _ = evolved(small_experiment)
    one, other = engine.pareto_front[0], engine.pareto_front[-1]
    rng = np.random.default_rng(0)
    child = one.crossover(other, rng=rng).mutate(0.5, rng=rng)
    assert child.layer_configs.keys() == one.layer_configs.keys()
    assert child.accuracy is None
    assert one.clone() == one


def test_sensitivity_is_a_share_of_the_largest(small_experiment):
    engine = QuantizationEvolutionEngine(data=small_experiment)
    names = ["stages.0.0", "head.fc"]
    shares = asyncio.run(engine.analyze_sensitivity(names))
    assert set(shares) == {
        "stages.0.0.conv1_1x1.conv",
        "stages.0.0.conv2_kxk.conv",
        "stages.0.0.conv3_1x1.conv",
        "head.fc",
    }
    assert max(shares.values()) == 1.0
    with pytest.raises(ConfigurationError, match="has no layer 'nowhere'"):
        asyncio.run(engine.analyze_sensitivity(["nowhere"]))


def test_an_engine_that_has_not_run_says_so():
    with pytest.raises(RunError, match="call run_evolution first"):
        QuantizationEvolutionEngine().get_best_genome()


def test_layers_that_are_not_named_stay_at_8_bits(small_experiment, tmp_path):
    config = QuantizationEvolutionConfig(
        population_size=4, max_generations=1, min_bits=2, hardware_target=HardwareTarget.ARM_NEON
    )
    engine = QuantizationEvolutionEngine(config, data=small_experiment, run_dir=tmp_path)
    asyncio.run(engine.run_evolution(layer_names=["stages.2"]))
    for genome in engine.pareto_front:
        outside = {name: layer for name, layer in genome.layer_configs.items() if not name.startswith("stages.2")}
        assert {layer.weight_bits for layer in outside.values()} == {8}


def test_the_structure_aware_quantizer_keeps_what_it_promises(small_experiment, tmp_path):
    quantizer = EfficientQuantizer(small_experiment)
    assert {name for name, kind in quantizer.layer_strategies.items() if kind == "log2"} == {
        name for name in quantizer.layer_configs if name.endswith(".av")
    }
    result = quantizer.validate_quantized_model()
    assert result["images"] == 64
    assert result["quantized_accuracy"] >= result["original_accuracy"] - 0.1
    logits = quantizer.quantize_hybrid_model()(quantizer.bench.evaluator.images("test").batches[0])
    assert logits.shape == (16, 10)
    deployment = EfficientQuantDeployment(quantizer)
    folder = deployment.export_deployment_package(tmp_path / "package", HardwareTarget.INTEL_VNNI)
    judged = load_yaml(folder / "evaluation.yaml").data
    assert judged["latency_kind"] == "predicted"
    assert judged["images"] == 64
