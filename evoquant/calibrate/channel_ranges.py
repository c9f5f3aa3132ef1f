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
    """Statistics of one operand by channel; all tensors are float64, (channels,).

    Attributes:
        magnitude: Greatest absolute value.
        mean_square: Mean of the squares.
    """

    magnitude: Tensor
    mean_square: Tensor


Place = tuple[str, int]
"""A node and the axis of its channels."""


def place(reader: Reader) -> Place:
    """Where the statistics of a reader are found."""
    return reader.node, reader.axis


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
    places: dict[str, set[int]] = {}
    for reader in readers:
        places.setdefault(reader.node, set()).add(reader.axis)
    observing = _RangeInterpreter(program, places)
    with torch.inference_mode():
        for batch in batches:
            observing.run(batch)
    if places and not observing.seen:
        raise DataError("The calibration set is empty: expected at least one image.")
    return {where: found.finish() for where, found in observing.seen.items()}


@dataclass(slots=True)
class _Running:
    magnitude: Tensor
    square_sum: Tensor
    count: int

    def finish(self) -> ChannelRange:
        return ChannelRange(self.magnitude.double(), self.square_sum / self.count)


class _RangeInterpreter(fx.Interpreter):
    def __init__(self, program: fx.GraphModule, places: Mapping[str, set[int]]) -> None:
        super().__init__(program)
        self._places = places
        self.seen: dict[Place, _Running] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        value = super().run_node(n)
        for axis in self._places.get(n.name, ()):
            self._look(value, (n.name, axis))
        return value

    def _look(self, value: Tensor, where: Place) -> None:
        others = [axis for axis in range(value.ndim) if axis != where[1]]
        magnitude, square_sum = value.abs().amax(others), value.square().sum(others).double()
        count = value.numel() // magnitude.numel()
        known = self.seen.get(where)
        if known is not None:
            magnitude = torch.maximum(magnitude, known.magnitude)
            square_sum, count = square_sum + known.square_sum, count + known.count
        self.seen[where] = _Running(magnitude, square_sum, count)
