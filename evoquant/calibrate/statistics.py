"""What calibration keeps of a tensor, in a size that does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evoquant.calibrate.histogram import StreamingHistogram
from evoquant.errors import DataError, ModelError


@dataclass(frozen=True, slots=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor over all calibration images.

    Attributes:
        count: Number of values.
        minimum: Smallest value.
        maximum: Greatest value.
        mean: Mean of the values.
        mean_square: Mean of their squares.
        channel_axis: Axis that ``channel_minimum`` and ``channel_maximum`` keep, counted with the batch axis as 0.
        channel_minimum: Float32, (channels,).
        channel_maximum: Float32, (channels,).
        counts: Int64, (bins,); bin i covers ``[(first_bin + i) * bin_width, (first_bin + i + 1) * bin_width)``.
        first_bin: Index of the first bin, in widths from zero.
        bin_width: Width of a bin, a power of two.
    """

    count: int
    minimum: float
    maximum: float
    mean: float
    mean_square: float
    channel_axis: int
    channel_minimum: NDArray[np.float32]
    channel_maximum: NDArray[np.float32]
    counts: NDArray[np.int64]
    first_bin: int
    bin_width: float

    def quantile(self, share: float) -> float:
        """The value below which this share of values lies, linear inside a bin, never outside [minimum, maximum]."""
        cumulative = np.cumsum(self.counts)
        target = share * self.count
        index = min(int(np.searchsorted(cumulative, target)), len(cumulative) - 1)
        before = int(cumulative[index - 1]) if index else 0
        part = (target - before) / max(1, int(self.counts[index]))
        value = (self.first_bin + index + min(max(part, 0.0), 1.0)) * self.bin_width
        return min(max(value, self.minimum), self.maximum)

    def occupied_bins(self) -> tuple[Tensor, Tensor]:
        """Probability and center of each bin that is not empty, float32, shape (1, bins) each."""
        occupied = np.flatnonzero(self.counts)
        centers = (self.first_bin + occupied + 0.5) * self.bin_width
        probability = self.counts[occupied] / max(1, self.count)
        return torch.from_numpy(probability).float()[None], torch.from_numpy(centers).float()[None]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Statistics of the tensors of a program.

    Attributes:
        images: Number of calibration images.
        tensors: Statistics by node name.
    """

    images: int
    tensors: Mapping[str, TensorStatistics]

    def __getitem__(self, node: str) -> TensorStatistics:
        if node not in self.tensors:
            raise DataError(f"No statistics of node '{node}' were collected. Collected: {', '.join(self.tensors)}.")
        return self.tensors[node]


class TensorObserver:
    """Gathers ``TensorStatistics`` batch by batch, in bounded memory.

    Args:
        name: Name of the tensor, for error messages.
        channel_axis: Axis that has per-channel extremes; negative counts from the last.
    """

    def __init__(self, name: str, *, channel_axis: int) -> None:
        self.name = name
        self._axis = channel_axis
        self._count = 0
        self._sum = 0.0
        self._square_sum = 0.0
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._histogram = StreamingHistogram()

    def update(self, values: Tensor) -> None:
        """Take one batch into account; it is not kept.

        Args:
            values: Float tensor with the batch on axis 0.

        Raises:
            ModelError: If a value is not finite.
            DataError: If the number of channels differs from earlier batches.
        """
        values = values.detach().float()
        axis = self._axis % values.ndim
        others = [index for index in range(values.ndim) if index != axis]
        low, high = (values.amin(others), values.amax(others)) if others else (values, values)
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            raise ModelError(f"Node '{self.name}' has values that are not finite on the calibration images.")
        if self._low is not None and self._low.shape != low.shape:
            raise DataError(
                f"Node '{self.name}' has {len(low)} channels on axis {axis}, but had {len(self._low)} in earlier "
                "batches."
            )
        self._axis = axis
        self._low = low.clone() if self._low is None else torch.minimum(self._low, low)
        self._high = high.clone() if self._high is None else torch.maximum(self._high, high)
        flat = values.reshape(-1)
        self._count += flat.numel()
        self._sum += float(flat.sum())
        self._square_sum += float(torch.dot(flat, flat))
        self._histogram.update(flat, float(low.min()), float(high.max()))

    def finish(self) -> TensorStatistics:
        """The statistics of everything seen.

        Raises:
            DataError: If nothing was seen.
        """
        if self._low is None or self._high is None:
            raise DataError(f"Node '{self.name}' was never computed: the calibration set is empty.")
        return TensorStatistics(
            count=self._count,
            minimum=float(self._low.min()),
            maximum=float(self._high.max()),
            mean=self._sum / self._count,
            mean_square=self._square_sum / self._count,
            channel_axis=self._axis,
            channel_minimum=self._low.numpy(),
            channel_maximum=self._high.numpy(),
            counts=self._histogram.counts.copy(),
            first_bin=self._histogram.first_bin,
            bin_width=self._histogram.width,
        )
