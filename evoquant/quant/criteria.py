"""How well a clipping range serves a histogram: mean square error, and divergence of the rounded distribution.

Both are computed for many candidate ranges at once. A row of ``probability`` and ``centers`` is a histogram; one row
that all candidates share, or one row for each candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evoquant.quant.lattice import Lattice, StepLattice

_EMPTY_MASS = 1e-9
"""Probability that stands for an empty bin, so that a logarithm of it exists."""


def histogram_mse(probability: Tensor, centers: Tensor, bin_width: float, scale: Tensor, lattice: Lattice) -> Tensor:
    """Mean square error of quantization for each candidate.

    A value stands at the center of its bin. Where the steps of a ``StepLattice`` are finer than the bins, centers tell
    nothing about rounding, so the error of a value inside the range is that of even spreading, ``scale**2 / 12``.

    Args:
        probability: Share of values in each bin, (1 or candidates, bins).
        centers: Center of each bin, same shape.
        bin_width: Width of a bin, in the unit of the centers.
        scale: Scale of each candidate, (candidates, 1).
        lattice: Nearest codes in units of the scale; tensor bounds have shape (candidates, 1).

    Returns:
        Shape (candidates,).
    """
    points = centers / scale
    if isinstance(lattice, StepLattice):
        clipped = lattice.clamp_(points.clone())
        rounded = torch.where(scale > bin_width, lattice.nearest_(points).mul_(scale), clipped.mul_(scale))
    else:
        rounded = lattice.nearest_(points).mul_(scale)
    error = rounded.sub_(centers).square_().mul_(probability).sum(dim=1)
    if isinstance(lattice, StepLattice):
        error = error + torch.where(scale > bin_width, 0.0, scale.square() / 12.0)[:, 0]
    return error


def histogram_kl(probability: Tensor, centers: Tensor, scale: Tensor, lattice: StepLattice, code_count: int) -> Tensor:
    """Kullback-Leibler divergence from the clipped histogram to its quantized form, for each candidate.

    The clipped histogram has what lies outside the range in its outermost bins. The quantized one is made from the
    inside alone: the mass of each code is spread evenly over those of its bins that are not empty. So clipping costs
    by what the edges gain, and a wide range by what spreading loses. Codes may be signed and have a zero point.

    Zero is a value of every range and has no error, and often it is a peak (after a ReLU). So the bin that begins at
    zero should be left out of the histogram: ``without_zero_bin``.

    Args:
        probability: Share of values in each bin, (1 or candidates, bins), zero where empty.
        centers: Center of each bin, ascending, same shape.
        scale: Scale of each candidate, (candidates, 1).
        lattice: Bounds of the codes in units of the scale.
        code_count: Number of codes.

    Returns:
        Shape (candidates,), in nats.

    References:
        S. Migacz, 8-bit inference with TensorRT, GPU Technology Conference 2017: entropy calibration. The form here
        also takes signed and asymmetric ranges.
    """
    steps = centers / scale
    low = torch.as_tensor(lattice.lower, dtype=steps.dtype)
    high = torch.as_tensor(lattice.upper, dtype=steps.dtype)
    inside = (steps >= low - 0.5) & (steps <= high + 0.5)
    codes = (lattice.nearest_(steps) - low).long()
    mass = probability * inside
    occupied = mass.gt(0.0).to(mass.dtype)
    per_code = mass.new_zeros(len(codes), code_count).scatter_add_(1, codes, mass)
    bins_of_code = torch.zeros_like(per_code).scatter_add_(1, codes, occupied)
    spread = (per_code / bins_of_code.clamp_(min=1.0)).gather(1, codes).mul_(occupied)
    total = spread.sum(dim=1, keepdim=True).clamp_(min=_EMPTY_MASS)
    quantized = spread.div_(total).clamp_(min=_EMPTY_MASS)
    clipped = _with_outliers_at_edges(mass, probability, inside)
    return torch.xlogy(clipped, clipped / quantized).sum(dim=1)


def without_zero_bin(probability: Tensor, centers: Tensor, bin_width: Tensor | float) -> Tensor:
    """The probabilities of what is not in the bin that begins at zero; unchanged where that is everything.

    Args:
        probability: Share of values in each bin, (rows, bins).
        centers: Center of each bin, same shape.
        bin_width: Width of a bin, a number or (rows, 1).
    """
    rest = probability * ((centers <= 0.0) | (centers >= bin_width))
    total = rest.sum(dim=1, keepdim=True)
    return torch.where(total > 0.0, rest / total, probability)


def _with_outliers_at_edges(mass: Tensor, probability: Tensor, inside: Tensor) -> Tensor:
    """The masses inside, plus everything below on the first inner bin and everything above on the last one."""
    bins = inside.shape[1]
    first = inside.int().argmax(dim=1, keepdim=True)
    last = (first + inside.sum(dim=1, keepdim=True) - 1).clamp_(0, bins - 1)
    up_to = probability.cumsum(dim=1).expand(inside.shape)
    below = up_to.gather(1, first) - probability.expand(inside.shape).gather(1, first)
    above = up_to[:, -1:] - up_to.gather(1, last)
    return mass.scatter_add(1, first, below).scatter_add_(1, last, above)
