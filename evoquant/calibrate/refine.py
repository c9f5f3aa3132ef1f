"""Rounding decisions revised one input at a time, which can only lessen the output error."""

from __future__ import annotations

import torch
from torch import Tensor

from evoquant import kernels
from evoquant.calibrate.gptq import WeightGrid, array_of
from evoquant.kernels.rounding import revise_rounding
from evoquant.quant import QuantParams


def refine(quantized: Tensor, target: Tensor, params: QuantParams, hessian: Tensor, *, sweeps: int) -> Tensor:
    """Exact minimization over the codes of one input at a time, all outputs at once.

    Args:
        quantized: Values on the grid, (groups, rows, columns).
        target: The float weight that they stand for, same shape.
        params: How they are quantized.
        hessian: (groups, columns, columns).
        sweeps: Passes over all inputs.

    Returns:
        Values on the grid whose error ``(q - target) hessian (q - target)^T`` is at most that of ``quantized``.

    References:
        K. Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", 2023, algorithm 1.
    """
    grid = WeightGrid.of(target, params)
    result = quantized.clone(memory_format=torch.contiguous_format)
    gradient = (result - target) @ hessian
    if kernels.info().available:
        revise_rounding(array_of(result), array_of(gradient), array_of(hessian), grid.native(), sweeps=sweeps)
    else:
        sweep_columns(result, gradient, grid, hessian, sweeps)
    return result


def sweep_columns(result: Tensor, gradient: Tensor, grid: WeightGrid, hessian: Tensor, sweeps: int) -> None:
    """What ``kernels.rounding.revise_rounding`` does, where it was not built; ``result`` is revised in place."""
    power = hessian.diagonal(dim1=1, dim2=2)
    per_step = torch.where(power > 0, power.clamp_min(torch.finfo(power.dtype).tiny).reciprocal(), 0.0)
    for _ in range(sweeps):
        for column in range(result.shape[2]):
            old = result[:, :, column]
            new = grid.nearest(torch.addcmul(old, gradient[:, :, column], per_step[:, None, column], value=-1), column)
            gradient += (new - old)[:, :, None] * hessian[:, None, column]
            old.copy_(new)
