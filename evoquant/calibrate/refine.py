"""Rounding decisions revised one input at a time, which can only lessen the output error."""

from __future__ import annotations

import torch
from torch import Tensor

from evoquant.calibrate.gptq import WeightGrid
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
    result = quantized.clone()
    gradient = (result - target) @ hessian
    power = hessian.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        for column in range(result.shape[2]):
            own = power[:, None, column]
            step = torch.where(own > 0, gradient[:, :, column] / own.clamp_min(torch.finfo(own.dtype).tiny), 0.0)
            old = result[:, :, column].clone()
            new = grid.nearest((old - step)[:, :, None], slice(column, column + 1))[:, :, 0]
            change = new - old
            result[:, :, column] = new
            gradient += change[:, :, None] * hessian[:, None, column]
    return result
