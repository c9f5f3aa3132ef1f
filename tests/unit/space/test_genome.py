from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import PrecisionError
from evoquant.space import FitnessWeights, QuantizationGenome
from evoquant.types import CalibrationMethod, LayerQuantConfig, QuantizationScheme

names = st.text("abcxyz.0123", min_size=1, max_size=8)
metrics = st.none() | st.floats(0, 1e6)
configs = st.builds(
    LayerQuantConfig,
    weight_bits=st.sampled_from((2, 3, 4, 5, 6, 7, 8, 16, 32)),
    activation_bits=st.sampled_from((4, 5, 6, 7, 8, 16, 32)),
    weight_scheme=st.sampled_from((QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)),
    use_symmetric=st.booleans(),
    calibration_method=st.sampled_from(CalibrationMethod),
    percentile=st.floats(90, 100),
)
genomes = st.builds(
    QuantizationGenome,
    layer_configs=st.dictionaries(names, configs, min_size=1, max_size=6),
    global_scheme=st.sampled_from(QuantizationScheme),
    calibration_method=st.sampled_from(CalibrationMethod),
    accuracy=metrics,
    inference_latency_ms=metrics,
    memory_footprint_mb=metrics,
    energy_per_inference_mj=metrics,
    stored_bytes=st.none() | st.integers(1, 10**9),
    weight_counts=st.dictionaries(names, st.integers(0, 10**6), max_size=4),
    fitness_weights=st.builds(FitnessWeights, accuracy=st.floats(0, 1)),
)


@given(genomes)
def test_dictionary_round_trip(genome):
    assert QuantizationGenome.from_dict(genome.to_dict()) == genome
    assert QuantizationGenome.from_dict(json.loads(json.dumps(genome.to_dict()))) == genome


@given(genomes)
def test_a_clone_is_equal_and_independent(genome):
    clone = genome.clone()
    assert clone == genome
    assert clone.layer_configs is not genome.layer_configs


@given(genomes, st.integers(0, 1000), st.floats(0, 1))
def test_mutation_keeps_layers_and_forgets_metrics(genome, seed, rate):
    mutated = genome.mutate(rate, rng=np.random.default_rng(seed))
    assert set(mutated.layer_configs) == set(genome.layer_configs)
    assert mutated.accuracy is None
    assert mutated.stored_bytes is None
    assert mutated == genome.mutate(rate, rng=np.random.default_rng(seed))


def test_mutation_moves_one_step():
    genome = QuantizationGenome({f"layer{i}": LayerQuantConfig(weight_bits=6, activation_bits=6) for i in range(200)})
    mutated = genome.mutate(1.0, rng=np.random.default_rng(0))
    steps = {(c.weight_bits - 6, c.activation_bits - 6) for c in mutated.layer_configs.values()}
    assert steps == {(1, 0), (-1, 0), (0, 1), (0, -1)}
    assert genome.mutate(0.0, rng=np.random.default_rng(0)).layer_configs == genome.layer_configs
    share = sum(
        c != LayerQuantConfig(weight_bits=6, activation_bits=6)
        for c in genome.mutate(0.2, rng=np.random.default_rng(0)).layer_configs.values()
    )
    assert 20 <= share <= 60


def test_mutation_respects_matmuls_log2_and_float():
    genome = QuantizationGenome(
        {
            "a.qk": LayerQuantConfig(),
            "b": LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.LOG2, activation_bits=32),
            "c": LayerQuantConfig(weight_bits=32, activation_bits=32),
        }
    )
    for seed in range(20):
        after = genome.mutate(1.0, rng=np.random.default_rng(seed)).layer_configs
        assert after["a.qk"].weight_bits == after["a.qk"].activation_bits == 7
        assert (after["b"], after["c"]) == (genome.layer_configs["b"], genome.layer_configs["c"])


def test_children_take_each_layer_from_a_parent():
    layers = [f"layer{i}" for i in range(50)]
    first = QuantizationGenome(dict.fromkeys(layers, LayerQuantConfig(weight_bits=4)), accuracy=0.5)
    second = QuantizationGenome(dict.fromkeys(layers, LayerQuantConfig(weight_bits=8)))
    child = first.crossover(second, rng=np.random.default_rng(1))
    assert {config.weight_bits for config in child.layer_configs.values()} == {4, 8}
    assert child.accuracy is None
    with pytest.raises(PrecisionError, match="different layers"):
        first.crossover(QuantizationGenome({"other": LayerQuantConfig()}), rng=np.random.default_rng(1))


def test_averages_and_ratios():
    layers = {"a": LayerQuantConfig(weight_bits=4), "b": LayerQuantConfig(weight_bits=8)}
    assert QuantizationGenome(layers).average_bits == 6
    weighted = QuantizationGenome(layers, weight_counts={"a": 300, "b": 100})
    assert weighted.average_bits == 5
    assert weighted.compression_ratio == pytest.approx(32 / 5)
    stored = QuantizationGenome(layers, weight_counts={"a": 300, "b": 100}, stored_bytes=320)
    assert stored.compression_ratio == pytest.approx(1600 / 320)


def test_fitness_by_hand():
    genome = QuantizationGenome(
        {"a": LayerQuantConfig(weight_bits=8)}, accuracy=0.9, inference_latency_ms=30.0, energy_per_inference_mj=10.0
    )
    # 0.4 · 0.9 + 0.3 · (1 - 8/32) + 0.2 · 10/40 + 0.1 · 10/20
    assert genome.fitness_score == pytest.approx(0.36 + 0.225 + 0.05 + 0.05)
    assert QuantizationGenome({"a": LayerQuantConfig(weight_bits=32)}).fitness_score == 0.0


def test_unreadable_dictionaries_say_why():
    with pytest.raises(PrecisionError, match="layer_configs"):
        QuantizationGenome.from_dict({"layers": {}})
    with pytest.raises(PrecisionError, match="Unknown precision fields: bits"):
        QuantizationGenome.from_dict({"layer_configs": {"a": {"bits": 4}}})
    with pytest.raises(PrecisionError, match="at least one layer"):
        QuantizationGenome({})
