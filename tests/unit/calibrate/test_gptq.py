"""Rounding with compensation: identities, and errors against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evoquant import kernels
from evoquant.calibrate.gptq import ErrorSpread, WeightGrid, array_of, gptq, round_by_blocks
from evoquant.calibrate.refine import refine, sweep_columns
from evoquant.errors import KernelError
from evoquant.kernels.rounding import RoundingPoints, revise_rounding, round_compensated
from evoquant.quant import QuantParams, fake_quantize, weight_params
from evoquant.types import LayerQuantConfig, QuantizationGranularity, QuantizationScheme

CONFIGS = (
    LayerQuantConfig(weight_bits=4),
    LayerQuantConfig(weight_bits=3, weight_symmetric=False),
    LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_TENSOR),
    LayerQuantConfig(weight_bits=4, granularity=QuantizationGranularity.PER_GROUP, group_size=8),
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.POWER_OF_TWO),
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.LOG2),
    LayerQuantConfig(weight_bits=4, weight_scheme=QuantizationScheme.NORMAL),
    LayerQuantConfig(weight_bits=2, weight_scheme=QuantizationScheme.TERNARY),
    LayerQuantConfig(weight_bits=1, weight_scheme=QuantizationScheme.BINARY),
)


def _problem(seed: int, groups: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """A weight, and moments of inputs that are correlated as neighbouring channels are."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, width, generator=generator)
    mixing = torch.randn(groups, width, width, generator=generator) / width**0.5
    inputs = torch.randn(groups, 400, width, generator=generator) @ (mixing + 0.5)
    return weight, inputs.transpose(1, 2) @ inputs / 400


def _error(quantized: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    change = quantized - weight
    return torch.einsum("grw,grw->gr", change @ hessian, change)


def _params(weight: Tensor, config: LayerQuantConfig) -> QuantParams:
    return weight_params(weight.flatten(0, 1), config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
@pytest.mark.parametrize("groups", [1, 3])
def test_identity_hessian_is_rounding_to_the_nearest(config: LayerQuantConfig, groups: int) -> None:
    """For every scheme and granularity, grouped convolutions too; and refinement has nothing to improve."""
    weight, _ = _problem(0, groups, 6, 40)
    params = _params(weight, config)
    identity = torch.eye(40).expand(groups, 40, 40)
    nearest = fake_quantize(weight.flatten(0, 1), params).reshape(weight.shape)
    torch.testing.assert_close(gptq(weight, params, ErrorSpread.of(identity))[0], nearest, rtol=0, atol=0)
    refined = refine(nearest, weight, params, identity, sweeps=1)
    torch.testing.assert_close(refined, nearest, rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
def test_error_is_at_most_that_of_rounding_and_values_stay_on_the_grid(config: LayerQuantConfig) -> None:
    """Over blocks (150 columns), summed over the outputs; quantizing again changes nothing."""
    weight, hessian = _problem(1, 1, 12, 152)
    params = _params(weight, config)
    nearest = fake_quantize(weight[0], params)[None]
    (quantized,) = gptq(weight, params, ErrorSpread.of(hessian))
    refined = refine(quantized, weight, params, hessian, sweeps=2)
    before, after, last = (_error(q, weight, hessian) for q in (nearest, quantized, refined))
    assert float(after.sum()) < float(before.sum())
    assert bool((last <= after * (1 + 1e-4)).all())
    for values in (quantized, refined):
        torch.testing.assert_close(fake_quantize(values[0], params)[None], values, rtol=1e-6, atol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.integers(1, 4), rows=st.integers(1, 5), width=st.integers(1, 30))
def test_refinement_never_hurts(seed: int, groups: int, rows: int, width: int) -> None:
    """Each output of each group, from rounding to the nearest."""
    weight, hessian = _problem(seed, groups, rows, width)
    params = _params(weight, LayerQuantConfig(weight_bits=3))
    nearest = fake_quantize(weight.flatten(0, 1), params).reshape(weight.shape)
    refined = refine(nearest, weight, params, hessian, sweeps=1)
    assert bool((_error(refined, weight, hessian) <= _error(nearest, weight, hessian) * (1 + 1e-4) + 1e-6).all())


def test_groups_are_independent() -> None:
    """A grouped weight gives what its groups give alone."""
    weight, hessian = _problem(2, 3, 4, 20)
    config = LayerQuantConfig(weight_bits=4)
    (together,) = gptq(weight, _params(weight, config), ErrorSpread.of(hessian))
    for group in range(3):
        (alone,) = gptq(
            weight[group : group + 1], weight_params(weight[group], config), ErrorSpread.of(hessian[group : group + 1])
        )
        torch.testing.assert_close(together[group], alone[0])


def test_inputs_that_are_always_zero() -> None:
    """No power, no division by it: those weights are rounded to the nearest, the others as if alone."""
    weight, hessian = _problem(3, 1, 4, 16)
    hessian[:, 5], hessian[:, :, 5] = 0.0, 0.0
    params = _params(weight, LayerQuantConfig(weight_bits=4))
    (quantized,) = gptq(weight, params, ErrorSpread.of(hessian))
    torch.testing.assert_close(quantized[0, :, 5], fake_quantize(weight[0], params)[:, 5])
    (empty,) = gptq(weight, params, ErrorSpread.of(torch.zeros_like(hessian)))
    torch.testing.assert_close(empty[0], fake_quantize(weight[0], params))


def test_dampings_at_once_are_those_one_by_one() -> None:
    """And the largest is rounding to the nearest."""
    weight, hessian = _problem(4, 2, 3, 24)
    params = _params(weight, LayerQuantConfig(weight_bits=4))
    dampings = (0.01, 0.3, 1e9)
    together = gptq(weight, params, ErrorSpread.of(hessian, dampings))
    for damping, found in zip(dampings, together, strict=True):
        torch.testing.assert_close(found, gptq(weight, params, ErrorSpread.of(hessian, (damping,)))[0])
    assert bool((together[0] != together[1]).any())
    torch.testing.assert_close(together[2].flatten(0, 1), fake_quantize(weight.flatten(0, 1), params))


def test_a_covariance_that_rounding_left_indefinite() -> None:
    """Inputs that hardly vary: the difference of almost equal moments is noise, not a covariance."""
    weight, hessian = _problem(0, 2, 4, 9)
    noise = torch.randn(9, 9, generator=torch.Generator().manual_seed(1))
    hessian[1] = 1e-9 * (noise + noise.T)
    config = LayerQuantConfig(weight_bits=4)
    (together,) = gptq(weight, _params(weight, config), ErrorSpread.of(hessian))
    (alone,) = gptq(weight[:1], weight_params(weight[0], config), ErrorSpread.of(hessian[:1]))
    assert together.isfinite().all()
    torch.testing.assert_close(together[0], alone[0])


@pytest.mark.skipif(not kernels.info().available, reason="the native kernels are not built")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
@pytest.mark.parametrize("groups", [1, 3])
def test_native_loops_are_those_of_torch(config: LayerQuantConfig, groups: int) -> None:
    """Bit by bit within a block of columns, for both ways to round; rows that do not fill a vector too."""
    weight, hessian = _problem(5, groups, 19, 56)
    grid, spread = WeightGrid.of(weight, _params(weight, config)), ErrorSpread.of(hessian, (0.01, 0.1))
    found, expected = (weight.repeat(2, 1, 1) for _ in range(2))
    round_compensated(array_of(found), array_of(spread.factors), grid.native())
    round_by_blocks(expected, grid.repeated(2), spread.factors)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    revised, gradient = expected[:groups].clone(), (expected[:groups] - weight) @ hessian
    found = revised.clone()
    revise_rounding(array_of(found), array_of(gradient), array_of(hessian), grid.native(), sweeps=2)
    sweep_columns(revised, gradient.clone(), grid, hessian, 2)
    assert bool(((_error(found, weight, hessian) / _error(revised, weight, hessian)).sqrt() - 1).abs().max() < 0.05)
    assert float((found != revised).float().mean()) < 0.02


@pytest.mark.skipif(not kernels.info().available, reason="the native kernels are not built")
def test_native_loops_refuse_what_does_not_fit() -> None:
    """Shapes and layouts, with what was expected."""
    weight, square, points = torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), RoundingPoints(array_of(torch.ones(2, 3, 4)))
    with pytest.raises(KernelError, match="factors need the shape"):
        round_compensated(array_of(weight), array_of(square[:, :3, :3]), points)
    with pytest.raises(KernelError, match="expected weight"):
        round_compensated(weight.transpose(1, 2).numpy(), array_of(square), points)
    with pytest.raises(KernelError, match="whole repetitions"):
        round_compensated(array_of(torch.zeros(3, 3, 4)), array_of(torch.zeros(3, 4, 4)), points)
    with pytest.raises(KernelError, match="Hessian needs the shape"):
        revise_rounding(array_of(weight), array_of(weight), array_of(square[:1]), points, sweeps=1)
