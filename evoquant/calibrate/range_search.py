"""Clipping ranges from a histogram, by trying candidates: both ends together, then each end in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evoquant.quant import step_scale
from evoquant.quant.criteria import histogram_kl, histogram_mse, without_zero_bin
from evoquant.quant.lattice import StepLattice

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From lower and upper ends, (candidates,) each, to what is to be least, (candidates,)."""

MSE_STEPS = 100
KL_STEPS = 40
_ROUNDS = 2


def mse_criterion(
    bins: tuple[Tensor, Tensor], bin_width: float, q_min: int, q_max: int, *, is_symmetric: bool
) -> Criterion:
    """Mean square error of uniform codes for each range."""

    def criterion(lower: Tensor, upper: Tensor) -> Tensor:
        scale, lattice = _candidates(lower, upper, q_min, q_max, is_symmetric=is_symmetric)
        return histogram_mse(*bins, bin_width, scale, lattice)

    return criterion


def kl_criterion(
    bins: tuple[Tensor, Tensor], bin_width: float, q_min: int, q_max: int, *, is_symmetric: bool
) -> Criterion:
    """Divergence of the quantized histogram for each range."""
    probability = without_zero_bin(*bins, bin_width)

    def criterion(lower: Tensor, upper: Tensor) -> Tensor:
        scale, lattice = _candidates(lower, upper, q_min, q_max, is_symmetric=is_symmetric)
        return histogram_kl(probability, bins[1], scale, lattice, q_max - q_min + 1)

    return criterion


def search_range(
    criterion: Criterion, lower: float, upper: float, *, steps: int, is_symmetric: bool
) -> tuple[float, float]:
    """The range inside [lower, upper] where the criterion is least; the widest one among equals.

    Args:
        criterion: What is to be least.
        lower: Lower end of the whole range, at most 0.
        upper: Upper end, at least 0.
        steps: Candidates for each end are i/steps of it.
        is_symmetric: Whether only the wider side counts.

    Returns:
        Lower and upper end.
    """
    ratios = torch.arange(steps, 0, -1) / steps
    if is_symmetric or lower == 0.0 or upper == 0.0:
        best = _least(criterion, lower * ratios, upper * ratios)
        step = 1.0 / steps
        whole = max(abs(best[0] / lower) if lower else 0.0, abs(best[1] / upper) if upper else 0.0)
        finer = torch.linspace(min(1.0, whole + step), max(step / 2, whole - step), 21)
        return _least(criterion, lower * finer, upper * finer)
    best = _least(criterion, lower * ratios, upper * ratios)
    for _ in range(_ROUNDS):
        best = _least(criterion, torch.full_like(ratios, best[0]), upper * ratios)
        best = _least(criterion, lower * ratios, torch.full_like(ratios, best[1]))
    return best


def _candidates(
    lower: Tensor, upper: Tensor, q_min: int, q_max: int, *, is_symmetric: bool
) -> tuple[Tensor, StepLattice]:
    scale, zero_point = step_scale(lower, upper, q_min, q_max, is_symmetric=is_symmetric)
    shift = zero_point[:, None]
    return scale[:, None], StepLattice(q_min - shift, q_max - shift)


def _least(criterion: Criterion, lower: Tensor, upper: Tensor) -> tuple[float, float]:
    index = int(np.argmin(criterion(lower, upper).numpy()))
    return float(lower[index]), float(upper[index])
