"""Scales and zero points of activations, from their statistics."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evoquant.calibrate.lloyd import WeightedValues, lloyd_params
from evoquant.calibrate.range_search import KL_STEPS, MSE_STEPS, kl_criterion, mse_criterion, search_range
from evoquant.calibrate.statistics import TensorStatistics
from evoquant.errors import PrecisionError
from evoquant.quant import SMALLEST_SCALE, QuantParams, code_range, step_scale
from evoquant.quant.criteria import histogram_mse
from evoquant.quant.lattice import OctaveLattice, StepLattice
from evoquant.types import CalibrationMethod, LayerQuantConfig, QuantizationGranularity, QuantizationScheme
from evoquant.types.precision import FLOAT_BITS, MAX_LOG2_BITS

SILU_MINIMUM = -0.27846455
"""Least value of x * sigmoid(x), at x = -1.2785."""
GELU_MINIMUM = -0.16997121
"""Least value of x * Phi(x), at x = -0.7518."""

EXPONENT_OFFSETS = (1, 0, -1, -2)
_LOG2_STEPS = 100


def activation_params(
    statistics: TensorStatistics,
    config: LayerQuantConfig,
    *,
    lower_bound: float | None = None,
    levels_per_octave: int = 1,
) -> QuantParams:
    """Parameters of an input activation: one scale for the tensor.

    Asymmetric codes start at 0 and their range contains zero, so zero is exact and the zero point is a code. Symmetric
    codes are signed, without zero point. ``calibration_method`` sets the range: the extremes; the two-sided
    percentile; least square error (also where ``fisher`` or ``ranking`` is asked for, which
    ``cheapest_activation_params`` sets); least divergence. With more codes than bins (16 bits) a histogram cannot tell
    ranges apart, and the last two keep the extremes.

    A power-of-two scale is the exponent with the least square error near the range of the method. A log2 scale, and the
    levels of lloyd codes, are searched by square error, whatever the method.

    Args:
        statistics: Of the tensor.
        config: Precision; only its activation side and the calibration method are read.
        lower_bound: The least value that the tensor can have (``SILU_MINIMUM``, ``GELU_MINIMUM``): replaces the least
            value seen, so that images that are not in the calibration set fit too. None: not known.
        levels_per_octave: For log2: 1 for powers of two, 2 for powers of the root of two.

    Returns:
        Parameters with a scale of shape ().

    Raises:
        PrecisionError: If the activation stays in floating point, or log2 meets negative values or too many bits.
    """
    if config.activation_bits == FLOAT_BITS:
        raise PrecisionError(f"activation_bits {FLOAT_BITS} leaves the input in floating point.")
    if config.activation_scheme is QuantizationScheme.LOG2:
        return _log2_params(statistics, config.activation_bits, levels_per_octave)
    lower = min(statistics.minimum if lower_bound is None else lower_bound, 0.0)
    if config.activation_scheme is QuantizationScheme.LLOYD:
        values = WeightedValues.of_bins(*statistics.occupied_bins(), lower, max(statistics.maximum, 0.0))
        return lloyd_params(values, config.activation_bits)
    return _step_params(statistics, config, lower, is_symmetric=config.use_symmetric)


def operand_params(statistics: TensorStatistics, config: LayerQuantConfig) -> QuantParams:
    """Parameters of the second operand of an attention matmul: symmetric, signed.

    With ``PER_CHANNEL`` there is one scale for each entry of the statistics' channel axis (the heads of a tensor of
    shape (batch, heads, ...)), from the extremes, which the range of ``calibration_method`` for the whole tensor
    clips; else one for the tensor.

    Args:
        statistics: Of the operand.
        config: Precision of the matmul; ``activation_bits`` are those of both operands.

    Returns:
        Parameters with a scale of shape (), or (channels,) with the statistics' axis.

    Raises:
        PrecisionError: If the activation stays in floating point.
    """
    if config.activation_bits == FLOAT_BITS:
        raise PrecisionError(f"activation_bits {FLOAT_BITS} leaves the operand in floating point.")
    whole = _step_params(statistics, config, min(statistics.minimum, 0.0), is_symmetric=True, forced_uniform=True)
    if config.granularity is not QuantizationGranularity.PER_CHANNEL:
        return whole
    bound = np.maximum(np.abs(statistics.channel_minimum), np.abs(statistics.channel_maximum))
    scale = (torch.from_numpy(bound) / whole.q_max).clamp(min=SMALLEST_SCALE).minimum(whole.scale)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return QuantParams(
        whole.scheme, whole.bits, scale, zero_point, whole.q_min, whole.q_max, axis=statistics.channel_axis
    )


def _step_params(
    statistics: TensorStatistics,
    config: LayerQuantConfig,
    lowest: float,
    *,
    is_symmetric: bool,
    forced_uniform: bool = False,
) -> QuantParams:
    scheme = QuantizationScheme.UNIFORM if forced_uniform else config.activation_scheme
    if scheme not in (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO):
        raise PrecisionError(f"activation_scheme '{scheme.value}' exists for weights only. Use 'uniform'.")
    bits = config.activation_bits
    q_min, q_max = code_range(scheme, bits, is_symmetric=is_symmetric, is_signed=is_symmetric)
    lower, upper = _range(statistics, config, lowest, (q_min, q_max), is_symmetric=is_symmetric)
    if scheme is QuantizationScheme.POWER_OF_TWO:
        scale, zero_point = _nearest_exponent(statistics, lower, upper, q_min, q_max, is_symmetric=is_symmetric)
    else:
        ends = torch.tensor([lower]), torch.tensor([upper])
        scale, zero_point = step_scale(*ends, q_min, q_max, is_symmetric=is_symmetric)
    return QuantParams(scheme, bits, scale[0], zero_point[0].to(torch.int32), q_min, q_max)


def _range(
    statistics: TensorStatistics,
    config: LayerQuantConfig,
    lowest: float,
    codes: tuple[int, int],
    *,
    is_symmetric: bool,
) -> tuple[float, float]:
    highest = max(statistics.maximum, 0.0)
    method = config.calibration_method
    if method is CalibrationMethod.MIN_MAX or lowest == highest:
        return lowest, highest
    if method is CalibrationMethod.PERCENTILE:
        tail = (1.0 - config.percentile / 100.0) / 2.0
        lower, upper = max(min(statistics.quantile(tail), 0.0), lowest), max(statistics.quantile(1.0 - tail), 0.0)
        return (lower, upper) if lower < upper else (lowest, highest)
    if codes[1] - codes[0] >= len(statistics.counts):
        return lowest, highest
    bins = statistics.occupied_bins()
    if method is not CalibrationMethod.ENTROPY:
        criterion = mse_criterion(bins, statistics.bin_width, *codes, is_symmetric=is_symmetric)
        return search_range(criterion, lowest, highest, steps=MSE_STEPS, is_symmetric=is_symmetric)
    criterion = kl_criterion(bins, statistics.bin_width, *codes, is_symmetric=is_symmetric)
    return search_range(criterion, lowest, highest, steps=KL_STEPS, is_symmetric=is_symmetric)


def _nearest_exponent(
    statistics: TensorStatistics, lower: float, upper: float, q_min: int, q_max: int, *, is_symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The power of two, and its zero point, with the least square error near a range."""
    real, _ = step_scale(torch.tensor([lower]), torch.tensor([upper]), q_min, q_max, is_symmetric=is_symmetric)
    scale = torch.exp2(real.log2().ceil() + torch.tensor(EXPONENT_OFFSETS))
    if is_symmetric:
        zero_point = torch.zeros_like(scale)
    else:
        shrink = (scale * (q_max - q_min) / max(upper - lower, SMALLEST_SCALE)).clamp_(max=1.0)
        zero_point = (q_min - lower * shrink / scale).round_().clamp_(q_min, q_max)
    shift = zero_point[:, None]
    lattice = StepLattice(q_min - shift, q_max - shift)
    error = histogram_mse(*statistics.occupied_bins(), statistics.bin_width, scale[:, None], lattice)
    best = int(np.argmin(error.numpy()))
    return scale[best : best + 1], zero_point[best : best + 1]


def _log2_params(statistics: TensorStatistics, bits: int, levels_per_octave: int) -> QuantParams:
    if statistics.minimum < 0.0:
        raise PrecisionError(
            f"activation_scheme 'log2' needs values that are not negative, such as the output of a softmax, "
            f"but the least one is {statistics.minimum}. Use 'uniform'."
        )
    if bits > MAX_LOG2_BITS:
        raise PrecisionError(f"activation_scheme 'log2' takes at most {MAX_LOG2_BITS} bits, but got {bits}.")
    q_min, q_max = code_range(QuantizationScheme.LOG2, bits, is_symmetric=True, is_signed=False)
    ratios = torch.arange(_LOG2_STEPS, _LOG2_STEPS // 5, -1) / _LOG2_STEPS
    scale = (statistics.maximum * ratios).clamp_(min=SMALLEST_SCALE)
    lattice = OctaveLattice(q_max, levels_per_octave, is_signed=False)
    error = histogram_mse(*statistics.occupied_bins(), statistics.bin_width, scale[:, None], lattice)
    best = scale[int(np.argmin(error.numpy()))]
    zero_point = torch.tensor(0, dtype=torch.int32)
    return QuantParams(
        QuantizationScheme.LOG2, bits, best, zero_point, q_min, q_max, levels_per_octave=levels_per_octave
    )
