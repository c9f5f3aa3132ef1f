"""Factors of second moments that rounding may have left indefinite."""

from __future__ import annotations

import torch
from torch import Tensor


def damped_factor(moments: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of second moments with a regularization, in double precision.

    An input that is always zero has no power: it gets the mean one. Where inputs hardly vary, their covariance is a
    difference of almost equal numbers and need not be positive: it gets its nearest positive neighbour.

    Args:
        moments: (groups, width, width), symmetric.
        damping: Added to the diagonal, as a share of its mean.

    Returns:
        (groups, width, width), double.
    """
    exact = moments.double()
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(_damped(exact, damping))
    if not bool(failed.any()):
        return lower
    values, vectors = torch.linalg.eigh(exact)
    positive = (vectors * values.clamp_min(0.0)[:, None, :]) @ vectors.transpose(1, 2)
    return torch.where(failed[:, None, None] == 0, lower, torch.linalg.cholesky(_damped(positive, damping)))


def _damped(moments: Tensor, damping: float) -> Tensor:
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return moments + torch.diag_embed(damping * mean + torch.where(diagonal > 0, 0.0, mean))
