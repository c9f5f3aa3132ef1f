"""Scales of weights: from their extremes, a percentile, the least square error, or the least divergence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evoquant.errors import ModelError, PrecisionError
from evoquant.quant.lattice import TableLattice
from evoquant.quant.params import SMALLEST_SCALE, QuantParams, code_range
from evoquant.quant.scale_search import (
    entropy_ratio,
    nearest_exponent,
    search_log2_scale,
    search_ratio,
    search_top,
    ternary_scale,
)
from evoquant.types import (
    CalibrationMethod,
    LayerQuantConfig,
    OpKind,
    QuantizationGranularity,
    QuantizationScheme,
    Role,
)
from evoquant.types.precision import FLOAT_BITS, NORMAL_LEVELS
from evoquant.types.support import check_supported

_BY_SQUARE_ERROR = (CalibrationMethod.MSE, CalibrationMethod.FISHER, CalibrationMethod.RANKING)


def weight_params(weight: Tensor, config: LayerQuantConfig, *, clip: Tensor | float | None = None) -> QuantParams:
    """Scales and zero points for a weight.

    Symmetric scales are ``max|w| / (2**(bits-1) - 1)`` with as many codes below zero as above; asymmetric ranges
    contain zero, so zero is exact. ``calibration_method`` sets the range of uniform codes: the extremes; the
    percentile of the magnitudes (two-sided quantiles if asymmetric); the fraction i/100 of the extremes that has the
    least square error; or the one with the least divergence.

    Where few scales are possible, or the best one is known, the method has no effect: log2 and normal scales are
    searched by square error, a power-of-two scale is the exponent with the least square error near the range of the
    method, a ternary scale is the exact optimum, and a binary one the mean magnitude, which is the optimum.

    Args:
        weight: Float weight, output channels first: (out, in), (out, in, kh, kw), or 1-D (out,).
        config: Precision; only its weight side is read.
        clip: Greatest magnitude to represent, one number or one for each scale; replaces the calibration of
            uniform codes.

    Returns:
        Parameters in the layout of ``config.granularity``.

    Raises:
        PrecisionError: If the weight side is floating point or the combination is refused.
        ModelError: If the weight is not finite.
    """
    weights_only = replace(config, activation_bits=8, activation_scheme=QuantizationScheme.UNIFORM)
    check_supported(weights_only, OpKind.LINEAR, Role.CONV, tuple(weight.shape))
    if config.weight_bits == FLOAT_BITS:
        raise PrecisionError(
            f"weight_bits {FLOAT_BITS} leaves the weight in floating point: there is nothing to quantize."
        )
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(f"Weight of shape {tuple(weight.shape)} has values that are not finite.")
    layout = _WeightLayout.of(weight.detach().float(), config)
    scheme = config.weight_scheme
    if scheme in (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO):
        scale, zero_point = _step_params(layout.rows, config, clip)
    else:
        scale = _codebook_scale(layout.rows, config).clamp_(min=SMALLEST_SCALE)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    q_min, q_max = _weight_code_range(config)
    return QuantParams(
        scheme, config.weight_bits, scale.reshape(layout.shape), zero_point.reshape(layout.shape), q_min, q_max,
        axis=layout.axis, group_size=config.group_size,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _WeightLayout:
    """A weight as rows that each have one scale, and the shape of the scales."""

    rows: Tensor
    shape: tuple[int, ...]
    axis: int | None

    @classmethod
    def of(cls, weight: Tensor, config: LayerQuantConfig) -> _WeightLayout:
        if config.granularity is QuantizationGranularity.PER_TENSOR:
            return cls(weight.reshape(1, -1), (), None)
        if config.group_size is None:
            return cls(weight.reshape(weight.shape[0], -1), (weight.shape[0],), 0)
        rows = weight.reshape(-1, config.group_size)
        return cls(rows, (weight.shape[0], len(rows) // weight.shape[0]), None)


def _weight_code_range(config: LayerQuantConfig) -> tuple[int, int]:
    return code_range(config.weight_scheme, config.weight_bits, is_symmetric=config.weight_symmetric, is_signed=True)


def _codebook_scale(rows: Tensor, config: LayerQuantConfig) -> Tensor:
    if config.weight_scheme is QuantizationScheme.BINARY:
        return rows.abs().mean(dim=1)
    if config.weight_scheme is QuantizationScheme.TERNARY:
        return ternary_scale(rows)
    if config.weight_scheme is QuantizationScheme.NORMAL:
        return search_top(rows, TableLattice(NORMAL_LEVELS), top=max(NORMAL_LEVELS))
    return search_log2_scale(rows, magnitudes=2 ** (config.weight_bits - 1) - 1)


def _step_params(rows: Tensor, config: LayerQuantConfig, clip: Tensor | float | None) -> tuple[Tensor, Tensor]:
    q_min, q_max = _weight_code_range(config)
    lower, upper = _extremes(rows, config)
    if clip is not None:
        bound = torch.as_tensor(clip, dtype=rows.dtype).reshape(-1)
        lower, upper = torch.maximum(lower, -bound), torch.minimum(upper, bound)
    scale, zero_point = step_scale(lower, upper, q_min, q_max, is_symmetric=config.weight_symmetric)
    if clip is None and config.calibration_method in _BY_SQUARE_ERROR:
        scale = scale * search_ratio(rows, scale, zero_point, q_min, q_max)
    elif clip is None and config.calibration_method is CalibrationMethod.ENTROPY:
        scale = scale * entropy_ratio(rows, scale, zero_point, q_min, q_max)
    scale = scale.clamp_(min=SMALLEST_SCALE)
    if config.weight_scheme is QuantizationScheme.POWER_OF_TWO:
        scale = nearest_exponent(rows, scale, zero_point, q_min, q_max)
    return scale, zero_point.to(torch.int32)


def _extremes(rows: Tensor, config: LayerQuantConfig) -> tuple[Tensor, Tensor]:
    if config.calibration_method is not CalibrationMethod.PERCENTILE:
        return rows.amin(dim=1).clamp_(max=0.0), rows.amax(dim=1).clamp_(min=0.0)
    share = config.percentile / 100.0
    if config.weight_symmetric:
        bound = _row_quantile(rows.abs(), share)
        return -bound, bound
    tail = (1.0 - share) / 2.0
    return _row_quantile(rows, tail).clamp_(max=0.0), _row_quantile(rows, 1.0 - tail).clamp_(min=0.0)


def _row_quantile(rows: Tensor, share: float) -> Tensor:
    """Quantile of each row with linear interpolation, for rows of any length."""
    ordered = rows.sort(dim=1).values
    position = share * (rows.shape[1] - 1)
    left = int(position)
    right = min(left + 1, rows.shape[1] - 1)
    return torch.lerp(ordered[:, left], ordered[:, right], position - left)


def step_scale(lower: Tensor, upper: Tensor, q_min: int, q_max: int, *, is_symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of uniform codes for ranges that contain zero.

    Args:
        lower: Smallest value of each range, at most 0.
        upper: Greatest value of each range, at least 0.
        q_min: Smallest code.
        q_max: Greatest code.
        is_symmetric: Whether the zero point is 0 and the range the wider side, mirrored.

    Returns:
        Scales (float32) and zero points (float32, whole numbers in [q_min, q_max]), shape of ``lower``.
    """
    if is_symmetric:
        scale = torch.maximum(-lower, upper) / q_max
        return scale.clamp_(min=SMALLEST_SCALE), torch.zeros_like(scale)
    scale = ((upper - lower) / (q_max - q_min)).clamp_(min=SMALLEST_SCALE)
    return scale, (q_min - lower / scale).round_().clamp_(q_min, q_max)
