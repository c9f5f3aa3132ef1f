"""The range of every channel that an operand of a program has, over the calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.channel_flow import Reader
from evoquant.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class ChannelRange:
    """Statistics of one operand by channel; all tensors are float64 and have the shape of the reader's atoms.

    Attributes:
        lower: Smallest value.
        upper: Greatest value.
        mean: Mean.
        mean_square: Mean of the squares.
    """

    lower: Tensor
    upper: Tensor
    mean: Tensor
    mean_square: Tensor

    @property
    def middle(self) -> Tensor:
        """Half way between the extremes."""
        return (self.lower + self.upper) / 2

    @property
    def half_width(self) -> Tensor:
        """Half of what the values span."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """Greatest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


Place = tuple[str, tuple[int, ...]]
"""A node and the axes of its channels."""


def place(reader: Reader) -> Place:
    """Where the statistics of a reader are found."""
    return reader.node, reader.axes


def channel_ranges(
    program: fx.GraphModule, readers: Iterable[Reader], batches: Iterable[Tensor]
) -> dict[Place, ChannelRange]:
    """Run the program and look at every operand by channel.

    Args:
        program: The captured model.
        readers: Operands to look at.
        batches: Calibration images, batch on axis 0; read once.

    Raises:
        DataError: If there are no images.
    """
    places: dict[str, set[tuple[int, ...]]] = {}
    for reader in readers:
        places.setdefault(reader.node, set()).add(reader.axes)
    observing = _RangeInterpreter(program, places)
    with torch.inference_mode():
        for batch in batches:
            observing.run(batch)
    if places and not observing.seen:
        raise DataError("The calibration set is empty: expected at least one image.")
    return {where: found.finish() for where, found in observing.seen.items()}


@dataclass(slots=True)
class _Running:
    lower: Tensor
    upper: Tensor
    total: Tensor
    square_sum: Tensor
    count: int

    def finish(self) -> ChannelRange:
        mean, mean_square = self.total / self.count, self.square_sum / self.count
        return ChannelRange(self.lower.double(), self.upper.double(), mean, mean_square)


class _RangeInterpreter(fx.Interpreter):
    def __init__(self, program: fx.GraphModule, places: Mapping[str, set[tuple[int, ...]]]) -> None:
        super().__init__(program)
        self._places = places
        self.seen: dict[Place, _Running] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        value = super().run_node(n)
        for axes in self._places.get(n.name, ()):
            self._look(value, (n.name, axes))
        return value

    def _look(self, value: Tensor, where: Place) -> None:
        others = [axis for axis in range(value.ndim) if axis not in where[1]]
        lower, upper = value.amin(others), value.amax(others)
        total, square_sum = value.sum(others).double(), value.square().sum(others).double()
        count = value.numel() // lower.numel()
        known = self.seen.get(where)
        if known is not None:
            lower, upper = torch.minimum(lower, known.lower), torch.maximum(upper, known.upper)
            total, square_sum, count = total + known.total, square_sum + known.square_sum, count + known.count
        self.seen[where] = _Running(lower, upper, total, square_sum, count)
