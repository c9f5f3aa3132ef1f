"""A histogram that grows with what it has seen and does not depend on how that was cut into batches."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 2048
_SMALLEST_EXPONENT = -120
_LARGEST_INDEX = 2**22
_BLOCK = 65_536


class StreamingHistogram:
    """Counts in at most 2048 bins whose width is a power of two and whose edges are multiples of it.

    The width is the smallest that covers everything seen so far. Growing merges pairs of bins, which is exact because
    the edges of wide bins are edges of narrow ones. So the final histogram is a function of the values alone, whatever
    their order and the size of the batches. (A negative value less than 2**-126 widths from zero underflows in float32
    and is counted on the other side of it.)

    Attributes:
        counts: Int64, (2048,); bin i covers ``[(first_bin + i) * width, (first_bin + i + 1) * width)``.
        first_bin: Index of the first bin, in widths from zero.
        exponent: The width is ``2**exponent``.
    """

    __slots__ = ("_maximum", "_minimum", "counts", "exponent", "first_bin")

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.first_bin = 0
        self.exponent = _SMALLEST_EXPONENT
        self._minimum = math.inf
        self._maximum = -math.inf

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def update(self, values: Tensor, minimum: float, maximum: float) -> None:
        """Count values.

        Args:
            values: Finite float32 values of any shape.
            minimum: Their smallest.
            maximum: Their greatest.
        """
        self._cover(minimum, maximum)
        inverse_width = math.ldexp(1.0, -self.exponent)
        for block in torch.split(values.reshape(-1), _BLOCK):
            index = block.mul(inverse_width).floor_().sub_(self.first_bin).to(torch.int32)
            self.counts += torch.bincount(index, minlength=BINS).numpy()

    def _cover(self, minimum: float, maximum: float) -> None:
        self._minimum, self._maximum = min(minimum, self._minimum), max(maximum, self._maximum)
        exponent = _needed_exponent(self._minimum, self._maximum)
        first_bin = math.floor(math.ldexp(self._minimum, -exponent))
        if exponent == self.exponent and first_bin == self.first_bin:
            return
        occupied = np.flatnonzero(self.counts)
        shift = min(exponent - self.exponent, 62)
        moved = np.zeros_like(self.counts)
        np.add.at(moved, ((self.first_bin + occupied) >> shift) - first_bin, self.counts[occupied])
        self.counts, self.first_bin, self.exponent = moved, first_bin, exponent


def _needed_exponent(minimum: float, maximum: float) -> int:
    """The smallest exponent whose bins cover the range and whose indices are exact in float32."""
    exponent = _SMALLEST_EXPONENT
    for size, count in ((maximum - minimum, 2 * BINS), (max(abs(minimum), abs(maximum)), _LARGEST_INDEX)):
        if size > 0.0:
            exponent = max(exponent, math.frexp(size / count)[1] - 1)
    while not _covers(minimum, maximum, exponent):
        exponent += 1
    return exponent


def _covers(minimum: float, maximum: float, exponent: int) -> bool:
    low, high = (math.floor(math.ldexp(value, -exponent)) for value in (minimum, maximum))
    return high - low < BINS and max(abs(low), abs(high)) <= _LARGEST_INDEX
