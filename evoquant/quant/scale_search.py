"""The best scale of each row of a weight, by trying candidates on all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from evoquant.quant.criteria import histogram_kl, without_zero_bin
from evoquant.quant.lattice import Lattice, OctaveLattice, StepLattice

GRID = 100
"""Clipping candidates are i/GRID of the extremes."""
SMALLEST_STEP = 10
"""The smallest i: at a tenth of the extremes, even two-bit codes of heavy-tailed weights clip too much."""
KL_STEP = 3
EXPONENTS_BELOW = 4
UNUSED_OCTAVES = 2
LOG2_ERROR_SHARE = 0.04
ROW_BINS = 256
TENSOR_BINS = 2048
_BLOCK = 131_072
_HISTOGRAM_BLOCK = 2**21


def search_ratio(rows: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """The fraction i/100 of each row's scale that has the least square error; the greatest one among equals.

    Args:
        rows: Weights, (rows, columns).
        scale: Scale of each row for its whole range, (rows,).
        zero_point: Whole numbers, (rows,).
        q_min: Smallest code.
        q_max: Greatest code.

    Returns:
        Shape (rows,), in (0, 1].
    """
    candidates = torch.arange(GRID, SMALLEST_STEP - 1, -1) / GRID
    return _search(rows, lambda block: (scale[block] * ratio for ratio in candidates), zero_point, q_min, q_max) / scale


def nearest_exponent(rows: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """The power of two near each row's scale that has the least square error.

    Args:
        rows: Weights, (rows, columns).
        scale: Real scale of each row, (rows,).
        zero_point: Whole numbers, (rows,).
        q_min: Smallest code.
        q_max: Greatest code.

    Returns:
        Shape (rows,): scales ``2**k``.
    """
    top = scale.log2().ceil()
    offsets = range(1, -EXPONENTS_BELOW, -1)
    return _search(rows, lambda block: (torch.exp2(top[block] + k) for k in offsets), zero_point, q_min, q_max)


def search_top(rows: Tensor, lattice: Lattice, *, top: float) -> Tensor:
    """The scale of each row that has the least square error.

    Args:
        rows: Weights, (rows, columns).
        lattice: The points in units of the scale.
        top: The greatest of them.
    """
    largest = rows.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / top
    ratios = torch.arange(GRID, SMALLEST_STEP - 1, -1) / GRID
    best = torch.empty_like(largest)
    for block in _blocks(rows):
        best[block] = _best_of(rows[block], (largest[block] * ratio for ratio in ratios), lattice)
    return best


def search_log2_scale(rows: Tensor, *, magnitudes: int) -> Tensor:
    """The value of the greatest power-of-two level of each row, by its square error.

    Twice or four times the best value leaves the greatest levels without weights and takes as many from those next to
    zero, where they hardly matter. It is taken where the square error grows by at most 4 % (0.17 dB of the 14 to 15 dB
    of such codes), because integers of at most a quarter of the greatest level let kernels add four times as many
    products in 16 bits.
    """
    lattice = OctaveLattice(magnitudes, 1, is_signed=True)
    best = search_top(rows, lattice, top=1.0)
    for block in _blocks(rows):
        chosen = best[block]
        allowed = (1.0 + LOG2_ERROR_SHARE) * _square_error(rows[block], chosen, lattice)
        for _ in range(UNUSED_OCTAVES):
            wider = 2.0 * chosen
            chosen = torch.where(_square_error(rows[block], wider, lattice) <= allowed, wider, chosen)
        best[block] = chosen
    return best


def _square_error(rows: Tensor, scale: Tensor, lattice: Lattice) -> Tensor:
    points = lattice.nearest_(rows / scale[:, None]).mul_(scale[:, None])
    return points.sub_(rows).square_().sum(dim=1)


def ternary_scale(rows: Tensor) -> Tensor:
    """The scale of {-1, 0, 1} with the least square error of each row, exactly.

    With the k greatest magnitudes as ones, the best scale is their mean, and the error falls by
    ``(sum of them)**2 / k``.
    """
    ordered = rows.abs().sort(dim=1, descending=True).values.double()
    sums = ordered.cumsum(dim=1)
    counts = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    best = (sums.square() / counts).argmax(dim=1, keepdim=True)
    return (sums.gather(1, best) / (best + 1))[:, 0].float()


def entropy_ratio(rows: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """The fraction of each row's scale with the least divergence of its histogram; the greatest one among equals.

    Symmetric rows are counted by magnitude. With at least as many codes as bins nothing is lost by a whole range, so
    the fraction is 1 there.
    """
    symmetric = not bool(zero_point.any()) and q_min == -q_max
    values, lowest = (rows.abs(), 0) if symmetric else (rows, q_min)
    codes = q_max - lowest + 1
    bins = min(ROW_BINS, 16 * codes) if len(rows) > 1 else TENSOR_BINS
    best = torch.ones_like(scale)
    if codes >= bins:
        return best
    for block in torch.split(torch.arange(len(rows)), max(1, _HISTOGRAM_BLOCK // bins)):
        probability, centers = _row_histograms(values[block], bins)
        shift = zero_point[block, None]
        lattice = StepLattice(lowest - shift, q_max - shift)
        least = torch.full((len(block),), torch.inf)
        for step in range(GRID, SMALLEST_STEP - 1, -KL_STEP):
            divergence = histogram_kl(probability, centers, scale[block, None] * (step / GRID), lattice, codes)
            better = divergence < least
            best[block[better]] = step / GRID
            least = torch.where(better, divergence, least)
    return best


def _row_histograms(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    lower = values.amin(dim=1, keepdim=True).clamp_(max=0.0)
    width = (values.amax(dim=1, keepdim=True) - lower).clamp_(min=torch.finfo(torch.float32).tiny) / bins
    index = ((values - lower) / width).long().clamp_(0, bins - 1)
    share = torch.full_like(values, 1.0 / values.shape[1])
    probability = torch.zeros(len(values), bins).scatter_add_(1, index, share)
    centers = lower + (torch.arange(bins) + 0.5) * width
    return without_zero_bin(probability, centers, width), centers


def _search(
    rows: Tensor,
    candidates: Callable[[slice], Iterable[Tensor]],
    zero_point: Tensor,
    q_min: int,
    q_max: int,
) -> Tensor:
    best = torch.empty(len(rows))
    has_zero_point = bool(zero_point.any())
    for block in _blocks(rows):
        shift = zero_point[block, None] if has_zero_point else 0.0
        best[block] = _best_of(rows[block], candidates(block), StepLattice(q_min - shift, q_max - shift))
    return best


def _best_of(rows: Tensor, candidates: Iterable[Tensor], lattice: Lattice) -> Tensor:
    """The candidate with the least square error for each row, the first one among equals."""
    best = torch.zeros(len(rows))
    least = torch.full((len(rows),), torch.inf)
    points = torch.empty_like(rows)
    for scale in candidates:
        torch.mul(rows, scale.reciprocal()[:, None], out=points)
        error = torch.linalg.vector_norm(lattice.nearest_(points).mul_(scale[:, None]).sub_(rows), dim=1)
        better = error < least
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return best


def _blocks(rows: Tensor) -> list[slice]:
    """Slices of rows whose values stay in the cache while all candidates are tried."""
    size = max(1, _BLOCK // max(1, rows.shape[1]))
    return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
