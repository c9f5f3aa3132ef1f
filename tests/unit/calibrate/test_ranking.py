from dataclasses import replace

import pytest
import torch

from evoquant import models
from evoquant.calibrate import TensorObserver, activation_params
from evoquant.calibrate.range_by_cost import cheapest_activation_params, cheapest_operand_params
from evoquant.calibrate.ranking import PAIRS, ROWS, ScoreSample, sample_scores
from evoquant.graph import capture
from evoquant.quant import fake_quantize
from evoquant.quant.params import lattice_of
from evoquant.space.legality import canonical
from evoquant.types import CalibrationMethod, LayerQuantConfig, Role

RANKING = LayerQuantConfig(
    activation_bits=4, weight_bits=4, granularity="per_tensor", calibration_method=CalibrationMethod.RANKING
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(values, axis=1):
    observer = TensorObserver("x", channel_axis=axis)
    observer.update(values)
    return observer.finish()


def sample_of(query, key, pairs=64):
    first, second = torch.randint(key.shape[-1], (2, pairs), generator=torch.Generator().manual_seed(3))
    return ScoreSample(query, key, first, second)


def definition(sample, query, key):
    """Written again from the scores themselves."""
    scores, found = sample.query @ sample.key, query @ key
    exact = scores[..., sample.first] - scores[..., sample.second]
    other = found[..., sample.first] - found[..., sample.second]
    similarity = torch.nn.functional.cosine_similarity(exact.flatten(), other.flatten(), dim=0)
    inverted = torch.where(exact * other < 0, other.abs(), 0.0).sum() / exact.abs().sum()
    return float(1 - similarity + inverted)


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    return capture(models.create("mobilevit_micro").eval(), (1, 28, 28), name="mobilevit_micro")


def test_queries_and_keys_of_every_attention_are_sampled(captured):
    found = sample_scores(captured, randn(2, 1, 28, 28))
    assert set(found) == {op.name for op in captured.graph.ops if op.role is Role.ATTENTION_QK}
    for sample in found.values():
        images, heads, channels, tokens = sample.key.shape
        assert sample.query.shape == (images, heads, min(ROWS, tokens), channels)
        assert heads > 1
        assert len(sample.first) == len(sample.second) == PAIRS


@pytest.mark.parametrize("index", [0, 1])
def test_the_cost_is_the_one_that_is_searched(index):
    sample = sample_of(randn(2, 3, 9, 8), randn(2, 3, 8, 11, seed=1))
    operands = [sample.query, sample.key]
    params = activation_params(statistics_of(operands[index]), RANKING)
    (found,) = sample.operand(index).costs([(lattice_of(params), float(params.scale))])
    operands[index] = fake_quantize(operands[index], params)
    assert found == pytest.approx(definition(sample, *operands), rel=1e-4)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("method", ["minmax", "mse", "entropy"])
def test_the_range_found_costs_at_most_that_of_other_methods(index, method):
    sample = sample_of(randn(2, 3, 9, 8) ** 3, randn(2, 3, 8, 11, seed=1) ** 3)
    values = (sample.query, sample.key)[index]
    statistics, operand = statistics_of(values), sample.operand(index)
    search = cheapest_operand_params if index else cheapest_activation_params
    found = search(statistics, RANKING, operand)
    other = activation_params(statistics, replace(RANKING, calibration_method=method, use_symmetric=bool(index)))
    costs = operand.costs([(lattice_of(params), float(params.scale)) for params in (found, other)])
    assert costs[0] <= costs[1] * 1.02


def test_what_no_pair_depends_on_does_not_widen_the_range():
    """A channel in which all keys are equal shifts all scores of a query alike; square error keeps its outliers."""
    query, key = randn(2, 2, 20, 8), randn(2, 2, 8, 15, seed=1)
    query[..., 0] *= 50
    key[..., 0, :] = 1.0
    found = cheapest_activation_params(statistics_of(query), RANKING, sample_of(query, key).operand(0))
    other = activation_params(statistics_of(query), replace(RANKING, calibration_method="mse"))
    assert float(found.scale) < float(other.scale) / 3


def test_each_head_has_its_own_range():
    key = randn(2, 3, 8, 15, seed=1) * torch.tensor([1.0, 4.0, 16.0])[:, None, None]
    sample = sample_of(randn(2, 3, 20, 8), key)
    config = replace(RANKING, granularity="per_channel")
    found = cheapest_operand_params(statistics_of(key), config, sample.operand(1))
    assert found.scale.shape == (3,)
    for head in range(3):
        alone = sample.operand(1).heads[head]
        own = cheapest_operand_params(statistics_of(key[:, head : head + 1]), RANKING, alone)
        assert float(found.scale[head]) == pytest.approx(float(own.scale), rel=0.05)


def test_only_queries_and_keys_have_an_order(captured):
    for op in captured.graph.ops:
        method = canonical(op, RANKING).calibration_method
        assert method is (CalibrationMethod.RANKING if op.role is Role.ATTENTION_QK else CalibrationMethod.FISHER)
