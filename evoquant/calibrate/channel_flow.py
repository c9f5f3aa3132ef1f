"""Which channels of a program can be scaled, and which of them only together.

Every output channel of a convolution, a linear layer or an affine norm can be divided by a factor if all that reads it
multiplies by that factor. This module follows each such channel, an *atom*, through the operations that commute with a
positive factor, and finds

* who reads it: input channels of products,
* which atoms must have one factor, because they are added to each other,
* which atoms are bound to the factor 1, because they reach something that does not commute (SiLU, a clip at 6, a norm,
  the matmuls of an attention).

It does so by running the program once on labels: a tensor holds the number of its atom at every element. Views,
concatenations and sums then need no rule of their own for where channels go.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from evoquant.graph import CapturedModel
from evoquant.types import Op, OpKind

aten = torch.ops.aten

NO_ATOM = -1
"""The label of a value that belongs to no atom, and the factor of an atom that cannot be scaled."""

Labels = NDArray[np.int64]

VIEWS = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.transpose.int, aten.unbind.int, aten.cat.default,
        aten.flatten.using_ints, aten.slice.Tensor, aten.select.int, aten.split.Tensor,
        aten.split_with_sizes.default, aten.chunk.default, aten.unsqueeze.default, aten.squeeze.dim,
        aten.squeeze.dims, aten.expand.default, aten.flip.default, aten.roll.default, aten.sym_size.int,
        operator.getitem,
    }
)  # fmt: skip
_RECTIFIERS = frozenset({aten.relu.default, aten.leaky_relu.default})
NORMS: dict[Any, tuple[int, int]] = {aten.layer_norm.default: (2, -1), aten.group_norm.default: (2, 1)}
"""Position of the affine weight among the arguments, and the axis of its channels."""


@dataclass(frozen=True, slots=True)
class Source:
    """Something whose output channels can be divided: a product (by op name) or an affine norm (by node name)."""

    name: str
    first_atom: int
    channels: int
    is_norm: bool

    @property
    def atoms(self) -> slice:
        """Its atoms."""
        return slice(self.first_atom, self.first_atom + self.channels)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The input of a convolution or linear layer, seen by channel.

    Attributes:
        op: Name of the operation.
        node: Name of the node that is read.
        axis: Axis of the value that channels run along.
        atoms: Atom of each channel, ``NO_ATOM`` where there is none, (channels,).
    """

    op: str
    node: str
    axis: int
    atoms: Labels


@dataclass(frozen=True, slots=True, eq=False)
class ChannelFlow:
    """What a program does to the channels of its products and norms.

    Attributes:
        sources: In the order of computation.
        readers: Operands that read at least one atom, in the order of computation.
        factor_of: For each atom the number of its factor; ``NO_ATOM`` for atoms that cannot be scaled.
        factors: How many factors there are.
    """

    sources: tuple[Source, ...]
    readers: tuple[Reader, ...]
    factor_of: Labels
    factors: int

    def factors_read(self, reader: Reader) -> Labels:
        """The factor of each channel of an operand, ``NO_ATOM`` where it cannot be scaled."""
        return np.where(reader.atoms == NO_ATOM, NO_ATOM, self.factor_of[reader.atoms])


def trace_channels(captured: CapturedModel) -> ChannelFlow:
    """Follow all channels of a captured model: its program is run once on the labels of one image."""
    tracer = _LabelInterpreter(captured)
    image = torch.full((1, *captured.graph.input_shape[-3:]), NO_ATOM, dtype=torch.int64)
    with torch.inference_mode():
        tracer.run(image)
    return tracer.result()


@dataclass(slots=True)
class _Bonds:
    """What is known of the atoms so far."""

    count: int = 0
    pairs: list[Labels] = field(default_factory=list)
    bound: list[Labels] = field(default_factory=list)

    def new(self, channels: int) -> int:
        self.count += channels
        return self.count - channels

    def bind(self, labels: Tensor) -> None:
        """No factor for what these labels name."""
        self.bound.append(np.unique(labels.numpy()))

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """One factor for the atoms at each place; returns the labels of the sum."""
        first, second = _broadcast(first, second)
        pairs = np.unique(np.stack([first.reshape(-1).numpy(), second.reshape(-1).numpy()]), axis=1)
        both = (pairs != NO_ATOM).all(axis=0)
        self.pairs.append(pairs[:, both])
        self.bound.append(pairs[:, ~both].reshape(-1))
        return torch.where(second == NO_ATOM, second, first)

    def factors(self, read: Labels) -> tuple[Labels, int]:
        """The factor of each atom, given the atoms that somebody reads, and the number of factors."""
        bound = np.zeros(self.count, dtype=bool)
        for labels in self.bound:
            bound[labels[labels != NO_ATOM]] = True
        pairs = np.concatenate(self.pairs, axis=1) if self.pairs else np.zeros((2, 0), dtype=np.int64)
        joined = coo_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self.count, self.count))
        _, component = connected_components(joined, directed=False)
        is_free = np.zeros(self.count, dtype=bool)
        is_free[component[read]] = True
        is_free[component[bound]] = False
        number = np.where(is_free, np.cumsum(is_free) - 1, NO_ATOM)
        return number[component].astype(np.int64), int(is_free.sum())


class _LabelInterpreter(fx.Interpreter):
    """Runs a program on labels."""

    def __init__(self, captured: CapturedModel) -> None:
        super().__init__(captured.program)
        self._ops = {op.node: op for op in captured.graph.ops}
        self._bonds = _Bonds()
        self._sources: list[Source] = []
        self._readers: list[Reader] = []

    def result(self) -> ChannelFlow:
        """What the run has found."""
        read = [reader.atoms for reader in self._readers]
        atoms = np.unique(np.concatenate(read)) if read else np.zeros(0, dtype=np.int64)
        factor_of, factors = self._bonds.factors(atoms[atoms != NO_ATOM])
        return ChannelFlow(tuple(self._sources), tuple(self._readers), factor_of, factors)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - labels, or the sizes that views need
        """Labels of one node."""
        if n.op == "get_attr":
            return torch.full_like(super().run_node(n), NO_ATOM, dtype=torch.int64)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            for labels in tensors_in(args):
                self._bonds.bind(labels)
        if n.op == "call_function" and next(tensors_in(args, kwargs), None) is None:
            return without_labels(super().run_node(n))
        if n.op != "call_function" or n.target in VIEWS:
            return super().run_node(n)
        op = self._ops.get(n.name)
        if op is not None and op.kind is not OpKind.MATMUL:
            return self._product(n, op, args)
        if n.target in NORMS and is_own(n, NORMS[n.target][0]):
            return self._norm(n, args)
        if n.target in _RECTIFIERS:
            return args[0]
        if n.target is aten.add.Tensor and len(list(tensors_in(args[:2]))) == 2 and not kwargs:
            return self._bonds.join(args[0], args[1])
        if n.target is aten.mul.Tensor:
            return self._multiply(args)
        mean = averaged(n, args)
        return self._other(n, args, kwargs) if mean is None else mean

    def _other(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """An operation that commutes with nothing: what it reads is bound, what it gives has no atoms."""
        for labels in tensors_in(args, kwargs):
            self._bonds.bind(labels)
        return unlabelled(n, args, kwargs)

    def _multiply(self, args: tuple[Any, ...]) -> Tensor:
        """A number, a parameter or a gate leaves the atoms of the other side as they are."""
        first, second = args[0], args[1]
        if not isinstance(second, Tensor) or not isinstance(first, Tensor):
            return cast(Tensor, first if isinstance(first, Tensor) else second)
        first, second = _broadcast(first, second)
        if bool((first == NO_ATOM).all()):
            return second
        self._bonds.bind(second)
        return first

    def _norm(self, n: fx.Node, args: tuple[Any, ...]) -> Tensor:
        self._bonds.bind(args[0])
        return self._new_source(n.name, args[0].shape, NORMS[n.target][1], is_norm=True)

    def _product(self, n: fx.Node, op: Op, args: tuple[Any, ...]) -> Tensor:
        axis = 1 if op.kind is OpKind.CONV else -1
        self._read(op, args[0], axis % args[0].ndim)
        return self._new_source(op.name, unlabelled(n, args, {}).shape, axis, is_norm=False)

    def _read(self, op: Op, labels: Tensor, axis: int) -> None:
        """Note that an operation reads these atoms by channel, if it does."""
        atoms = by_axes(labels, (axis,))
        if atoms is None:
            self._bonds.bind(labels)
        elif bool((atoms != NO_ATOM).any()):
            self._readers.append(Reader(op.name, op.inputs[0], axis, atoms.numpy()))

    def _new_source(self, name: str, shape: torch.Size, axis: int, *, is_norm: bool) -> Tensor:
        channels = shape[axis]
        first = self._bonds.new(channels)
        self._sources.append(Source(name, first, channels, is_norm))
        return first + counted(shape, axis)


def _broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    return first, second


def by_axes(labels: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """The labels along some axes, if they depend on the place along these alone."""
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    lowest, highest = labels.amin(others), labels.amax(others)
    return lowest if torch.equal(lowest, highest) else None


def counted(shape: torch.Size, axis: int) -> Tensor:
    """Labels that count the channels along an axis from 0."""
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return torch.arange(shape[axis]).view(view).expand(shape).contiguous()


def averaged(n: fx.Node, args: tuple[Any, ...]) -> Tensor | None:
    """Labels after a mean or maximum over positions; None for another operation, or if atoms would be mixed."""
    if n.target is aten.adaptive_avg_pool2d.default and list(args[1]) in ([1, 1], [1]):
        axes, keep = [-2, -1], True
    elif n.target is aten.mean.dim:
        axes, keep = list(args[1]), len(args) > 2 and bool(args[2])
    else:
        return None
    lowest, highest = args[0].amin(axes, keep), args[0].amax(axes, keep)
    return lowest if torch.equal(lowest, highest) else None


def unlabelled(n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Tensors without atoms, of the shapes that the operation gives."""

    def shape_only(value: Any) -> Any:  # noqa: ANN401
        return torch.empty(value.shape) if isinstance(value, Tensor) else value

    with FakeTensorMode():
        found = n.target(*fx.node.map_aggregate(args, shape_only), **fx.node.map_aggregate(kwargs, shape_only))  # type: ignore[operator]
    return without_labels(found)


def without_labels(value: Any) -> Any:  # noqa: ANN401
    """Tensors of these shapes that hold no atom; other values stay."""
    return fx.node.map_aggregate(value, lambda one: torch.full(one.shape, NO_ATOM) if isinstance(one, Tensor) else one)


def tensors_in(*values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors among arguments, however deep."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


def is_own(n: fx.Node, position: int) -> bool:
    """Whether the affine parameters of a norm are stored ones that no other node reads."""
    stored = n.args[position : position + 2]
    return len(stored) == 2 and all(
        isinstance(value, fx.Node) and value.op == "get_attr" and len(value.users) == 1 for value in stored
    )
