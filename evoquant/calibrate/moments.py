"""Second moments of the inputs of convolutions and linear layers, in one streaming pass of the calibration images.

The mean square error of a layer's output is a quadratic form of the change of its weight, and these moments are its
matrix: with them, weights can be changed and judged without an image. Moments are kept for two disjoint parts of the
images, so that what is fitted to the one is judged on the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from evoquant.calibrate.importance import Importance
from evoquant.errors import DataError
from evoquant.types import ModelGraph, Op, OpKind

HELD_OUT_EVERY = 4
"""Every so many images, one is held out of the fitted part."""

MAX_WIDTH = 4608
"""Greatest number of inputs of one output (of a 3 x 3 convolution of 512 channels): the moments of a wider operation
would need more than 170 MB, and it is left without."""

MAX_POSITIONS = 1024
"""Output pixels of one image whose inputs are looked at; of more, every so many in both directions."""

VALUES_AT_ONCE = 4_000_000
"""About how many values of an unfolded convolution input exist at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moments of the input vectors that the rows of a weight are multiplied with.

    A convolution has one set for each of its groups, a linear layer has one group.

    Attributes:
        rows: Number of input vectors of a group.
        mean: Float32, (groups, width): the mean vector.
        second: Float32, (groups, width, width): the mean of ``x x^T``.
    """

    rows: int
    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        """``E[x x^T] - E[x] E[x]^T``, (groups, width, width), a new tensor."""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]

    def rescaled(self, factor: Tensor) -> Moments:
        """The moments of ``x / factor``; the factor is (groups, width)."""
        second = self.second.double() / (factor[:, :, None] * factor[:, None, :])
        return Moments(self.rows, (self.mean.double() / factor).float(), second.float())


@dataclass(frozen=True, slots=True, eq=False)
class SplitMoments:
    """Moments of one operation's input on the two parts of the calibration images.

    Attributes:
        fitted: What weights are fitted to.
        held_out: What they are judged on.
    """

    fitted: Moments
    held_out: Moments

    def rescaled(self, factor: Tensor) -> SplitMoments:
        """The moments of ``x / factor``; the factor is (groups, width)."""
        return SplitMoments(self.fitted.rescaled(factor), self.held_out.rescaled(factor))


class MomentAccumulator:
    """Sums of one operation's input vectors, in double precision."""

    def __init__(self, op: Op) -> None:
        self._op = op
        groups = op.geometry.groups if op.geometry else 1
        width = input_width(op)
        self._rows = 0
        self._weight = 0.0
        self._sum = torch.zeros(groups, width, dtype=torch.float64)
        self._square = torch.zeros(groups, width, width, dtype=torch.float64)

    def update(self, values: Tensor, importance: Tensor | None = None) -> None:
        """Take a batch of the operation's input into account; it is not kept.

        Args:
            values: The input.
            importance: Of the positions of the output, see ``Importance``; None: all are alike.
        """
        pieces = input_vectors(values, self._op)
        for vectors, weights in zip(pieces, vector_weights(self._op, importance), strict=False):
            weighted = vectors if weights is None else vectors * weights
            self._rows += vectors.shape[1]
            self._weight += vectors.shape[1] if weights is None else float(weights.sum())
            self._sum += weighted.sum(dim=1)
            self._square += weighted.transpose(1, 2) @ vectors

    def finish(self) -> Moments:
        """The moments of everything seen.

        Raises:
            DataError: If nothing was seen.
        """
        if not self._rows:
            raise DataError(f"Operation '{self._op.name}' was never computed: there are no calibration images.")
        return Moments(self._rows, (self._sum / self._weight).float(), (self._square / self._weight).float())


def input_width(op: Op) -> int:
    """Number of inputs of one output: the length of a row of the weight."""
    return op.weight_count // op.weight_shape[0]


def has_moments(op: Op) -> bool:
    """Whether an operation has a weight, and one that is not too wide."""
    return op.kind is not OpKind.MATMUL and input_width(op) <= MAX_WIDTH


def input_vectors(values: Tensor, op: Op) -> Iterable[Tensor]:
    """The vectors that the rows of a weight are multiplied with, in pieces of bounded size.

    Args:
        values: Input of the operation, with a batch axis.
        op: A convolution or linear layer.

    Yields:
        (groups, vectors, width), the width in the order of a flattened row of the weight.
    """
    geometry = op.geometry
    if geometry is None:
        yield values.reshape(1, -1, values.shape[-1])
        return
    step = _step(op)
    for piece in torch.split(values, _images_at_once(op)):
        yield _by_group(unfolded(piece, op, step=step), geometry.groups)


def unfolded(values: Tensor, op: Op, *, step: int = 1) -> Tensor:
    """The inputs of each output pixel of a convolution.

    Args:
        values: Input, (images, channels, height, width).
        op: The convolution.
        step: Every so many output pixels in both directions.

    Returns:
        (images, groups · width, pixels), the width in the order of a flattened row of the weight.
    """
    geometry = op.geometry
    assert geometry is not None, "only convolutions are unfolded"
    stride = geometry.stride[0] * step, geometry.stride[1] * step
    if geometry.kernel == (1, 1) and geometry.padding == (0, 0):
        return values[:, :, :: stride[0], :: stride[1]].flatten(2)
    return functional.unfold(
        values, geometry.kernel, dilation=geometry.dilation, padding=geometry.padding, stride=stride
    )


def output_vectors(values: Tensor, op: Op) -> Iterable[Tensor]:
    """The outputs that belong to ``input_vectors``, in the same pieces and the same order.

    Args:
        values: Output of the operation, with a batch axis.
        op: A convolution or linear layer.

    Yields:
        (groups, vectors, outputs of a group).
    """
    if op.geometry is None:
        yield values.reshape(1, -1, values.shape[-1])
        return
    step = _step(op)
    for piece in torch.split(values, _images_at_once(op)):
        yield _by_group(piece[:, :, ::step, ::step].flatten(2), op.geometry.groups)


def vector_weights(op: Op, importance: Tensor | None) -> Iterator[Tensor | None]:
    """The importance of the vectors of ``input_vectors`` in the same pieces, (1, vectors, 1); None: all are alike.

    Args:
        op: A convolution or linear layer.
        importance: Of the positions of its output, (images, positions...).
    """
    if importance is None:
        yield from repeat(None)
    elif op.geometry is None:
        yield importance.reshape(1, -1, 1)
    else:
        step = _step(op)
        for piece in torch.split(importance, _images_at_once(op)):
            yield piece[:, ::step, ::step].reshape(1, -1, 1)


def _by_group(columns: Tensor, groups: int) -> Tensor:
    """(images, groups * width, positions) as (groups, images * positions, width)."""
    images, channels, positions = columns.shape
    return columns.reshape(images, groups, channels // groups, positions).permute(1, 0, 3, 2).flatten(1, 2)


def _step(op: Op) -> int:
    """Of the output pixels of a large image every so many are looked at, so that there are few."""
    return math.ceil(math.sqrt(op.gemm[1] / MAX_POSITIONS))


def _images_at_once(op: Op) -> int:
    groups = op.geometry.groups if op.geometry else 1
    return max(1, VALUES_AT_ONCE // (input_width(op) * groups * min(MAX_POSITIONS, op.gemm[1])))


def rows_of(weight: Tensor, op: Op) -> Tensor:
    """A weight as (groups, outputs of a group, width), a view."""
    groups = op.geometry.groups if op.geometry else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def collect_moments(
    program: fx.GraphModule,
    graph: ModelGraph,
    batches: Iterable[Tensor],
    *,
    ops: Collection[str] | None = None,
    importance: Importance | None = None,
) -> Mapping[str, SplitMoments]:
    """Moments of the inputs of all operations that have a weight, in one streaming pass.

    Memory is that of one batch plus a matrix for each distinct input.

    Args:
        program: The captured model.
        graph: Its structure.
        batches: Image batches; read once.
        ops: Names of the operations; None takes all. Matmuls, and operations wider than ``MAX_WIDTH``, are left out.
        importance: Of the positions of their outputs on these images; None or empty: all are alike.

    Returns:
        By operation; operations that read one tensor in one way share theirs where all positions are alike.

    Raises:
        DataError: If there are not at least ``HELD_OUT_EVERY`` images.
    """
    wanted = [op for op in graph.ops if has_moments(op) and (ops is None or op.name in ops)]
    summing = _SummingInterpreter(program, wanted, importance or {})
    images = 0
    with torch.no_grad():
        for batch in batches:
            numbers = torch.arange(images, images + len(batch))
            is_held_out = (numbers + 1) % HELD_OUT_EVERY == 0
            for part, mask in enumerate((~is_held_out, is_held_out)):
                if bool(mask.any()):
                    summing.part, summing.numbers = part, numbers[mask]
                    summing.run(batch[mask])
            images += len(batch)
    if images < HELD_OUT_EVERY:
        raise too_few_images(images)
    finished = {key: SplitMoments(*(part.finish() for part in parts)) for key, parts in summing.accumulators.items()}
    return {op.name: finished[summing.key(op)] for op in wanted}


def too_few_images(images: int) -> DataError:
    """The error of having none to hold out."""
    return DataError(
        f"The compensation of weights needs at least {HELD_OUT_EVERY} calibration images, but got {images}. Give more, "
        "or turn it off (compensation: {weight_compensation: none, bias_correction: false})."
    )


def reading(op: Op) -> tuple[object, ...]:
    """What an operation reads and how: operations that agree in it have the same moments."""
    return (op.inputs[0], op.geometry, input_width(op))


class _SummingInterpreter(fx.Interpreter):
    """Runs a program node by node and sums up the inputs of operations."""

    def __init__(self, program: fx.GraphModule, ops: Collection[Op], importance: Importance) -> None:
        super().__init__(program)
        self.part = 0
        self.numbers = torch.empty(0, dtype=torch.int64)
        self.accumulators: dict[object, tuple[MomentAccumulator, MomentAccumulator]] = {}
        self._importance = importance
        self._readers: dict[str, list[Op]] = {}
        for op in ops:
            if self.key(op) not in self.accumulators:
                self.accumulators[self.key(op)] = MomentAccumulator(op), MomentAccumulator(op)
                self._readers.setdefault(op.inputs[0], []).append(op)

    def key(self, op: Op) -> object:
        """Operations with the same key have the same moments."""
        return op.name if op.name in self._importance else reading(op)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute one node and, if operations read it, add its value to their sums."""
        value = super().run_node(n)
        for op in self._readers.get(n.name, ()):
            importance = self._importance.get(op.name)
            weights = None if importance is None else importance[self.numbers]
            self.accumulators[self.key(op)][self.part].update(value, weights)
        return value
