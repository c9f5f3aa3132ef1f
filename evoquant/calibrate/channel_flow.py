"""Which channels of a program can be scaled, and which of them only together.

Every output channel of a convolution, a linear layer or an affine norm can be divided by a factor if all that reads it
multiplies by that factor. This module follows each such channel, an *atom*, through the operations that commute with a
positive factor, and finds

* who reads it: input channels of products,
* which atoms must have one factor, because they are added to each other,
* which atoms are bound to the factor 1, because they reach something that does not commute (SiLU, a clip at 6, a norm).

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

from evoquant.graph import CapturedModel
from evoquant.types import Op, OpKind, Role

aten = torch.ops.aten

NO_ATOM = -1
"""The label of a value that belongs to no atom, and the factor of an atom that cannot be scaled."""

Labels = NDArray[np.int64]

_VIEWS = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.transpose.int, aten.unbind.int, aten.cat.default,
        aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
        aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.flip.default,
        aten.roll.default, aten.sym_size.int, operator.getitem,
    }
)  # fmt: skip
_RECTIFIERS = frozenset({aten.relu.default, aten.leaky_relu.default})
_NORMS: dict[Any, tuple[int, int]] = {aten.layer_norm.default: (2, -1), aten.group_norm.default: (2, 1)}
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
    """One operand of an operation, seen by channel.

    Attributes:
        op: Name of the operation.
        index: 0 for the input of a convolution or linear layer and for the first operand of a matmul, else 1.
        node: Name of the node that is read.
        axes: Axes of the value that channels run along, never the batch.
        atoms: Atom of each channel, ``NO_ATOM`` where there is none; one dimension for each of ``axes``.
    """

    op: str
    index: int
    node: str
    axes: tuple[int, ...]
    atoms: Labels


@dataclass(frozen=True, slots=True, eq=False)
class ChannelFlow:
    """What a program does to the channels of its products and norms.

    Attributes:
        sources: In the order of computation.
        readers: Operands that read at least one atom, in the order of computation.
        similarities: Operands q and k of attention matmuls: a factor of one and its inverse on the other cancel.
        factor_of: For each atom the number of its factor; ``NO_ATOM`` for atoms that cannot be scaled.
        is_shiftable: For each atom whether a constant may be added to it: it reaches its readers through views (and
            the weighted mean of an attention) alone, and none of them pads.
        factors: How many factors there are.
        movable_keys: Attention matmuls to whose k a constant may be added: it changes all scores of a query alike,
            which the softmax that follows does not see.
    """

    sources: tuple[Source, ...]
    readers: tuple[Reader, ...]
    similarities: tuple[tuple[Reader, Reader], ...]
    factor_of: Labels
    is_shiftable: NDArray[np.bool_]
    factors: int
    movable_keys: frozenset[str]

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
    unshiftable: list[Labels] = field(default_factory=list)

    def new(self, channels: int) -> int:
        self.count += channels
        return self.count - channels

    def bind(self, labels: Tensor) -> None:
        """No factor for what these labels name."""
        self.bound.append(np.unique(labels.numpy()))

    def fix(self, labels: Tensor) -> None:
        """No shift for what these labels name."""
        self.unshiftable.append(np.unique(labels.numpy()))

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """One factor for the atoms at each place; returns the labels of the sum."""
        first, second = _broadcast(first, second)
        pairs = np.unique(np.stack([first.reshape(-1).numpy(), second.reshape(-1).numpy()]), axis=1)
        both = (pairs != NO_ATOM).all(axis=0)
        self.pairs.append(pairs[:, both])
        self.bound.append(pairs[:, ~both].reshape(-1))
        self.unshiftable.append(pairs.reshape(-1))
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
        self._similarities: list[tuple[Reader, Reader]] = []
        self._before_softmax: set[str] = set()

    def result(self) -> ChannelFlow:
        """What the run has found."""
        read = [reader.atoms.reshape(-1) for reader in self._readers]
        atoms = np.unique(np.concatenate(read)) if read else np.zeros(0, dtype=np.int64)
        similar = tuple(pair for pair in self._similarities if self._cancels(pair))
        for pair in self._similarities:
            for reader in pair:
                self._bonds.bind(torch.from_numpy(reader.atoms))
        factor_of, factors = self._bonds.factors(atoms[atoms != NO_ATOM])
        is_shiftable = factor_of != NO_ATOM
        for labels in self._bonds.unshiftable:
            is_shiftable[labels[labels != NO_ATOM]] = False
        return ChannelFlow(
            tuple(self._sources), tuple(self._readers), similar, factor_of, is_shiftable, factors, self._movable_keys()
        )

    def _movable_keys(self) -> frozenset[str]:
        fixed = np.concatenate([np.zeros(0, dtype=np.int64), *self._bonds.unshiftable])
        free = (k for _, k in self._similarities if k.op in self._before_softmax)
        return frozenset(k.op for k in free if not np.isin(k.atoms, fixed).any())

    def _cancels(self, pair: tuple[Reader, Reader]) -> bool:
        """Whether the atoms of q and k are read by this matmul alone, each at one place."""
        atoms = np.concatenate([reader.atoms.reshape(-1) for reader in pair])
        if (atoms == NO_ATOM).any() or len(np.unique(atoms)) != len(atoms):
            return False
        elsewhere = [reader.atoms for reader in self._readers]
        elsewhere += [other.atoms for others in self._similarities if others is not pair for other in others]
        elsewhere += [*self._bonds.bound, *self._bonds.pairs]
        return not any(np.isin(atoms, labels).any() for labels in elsewhere)

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - labels, or the sizes that views need
        """Labels of one node."""
        if n.op == "get_attr":
            return torch.full_like(super().run_node(n), NO_ATOM, dtype=torch.int64)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            for labels in _tensors(args):
                self._bonds.bind(labels)
        if n.op != "call_function" or n.target in _VIEWS or next(_tensors(args, kwargs), None) is None:
            return super().run_node(n)
        if n.name in self._ops:
            return self._product(n, self._ops[n.name], args)
        if n.target in _NORMS and _is_own(n, _NORMS[n.target][0]):
            return self._norm(n, args)
        if n.target in _RECTIFIERS:
            self._bonds.fix(args[0])
            return args[0]
        if n.target is aten.add.Tensor and len(list(_tensors(args[:2]))) == 2 and not kwargs:
            return self._bonds.join(args[0], args[1])
        if n.target is aten.mul.Tensor:
            return self._multiply(args)
        averaged = _averaged(n, args)
        return self._other(n, args, kwargs) if averaged is None else averaged

    def _other(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """An operation that commutes with nothing: what it reads is bound, what it gives has no atoms."""
        for labels in _tensors(args, kwargs):
            self._bonds.bind(labels)
        return _unlabelled(n, args, kwargs)

    def _multiply(self, args: tuple[Any, ...]) -> Tensor:
        """A number, a parameter or a gate leaves the atoms of the other side as they are."""
        for labels in _tensors(args):
            self._bonds.fix(labels)
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
        return self._new_source(n.name, args[0].shape, _NORMS[n.target][1], is_norm=True)

    def _product(self, n: fx.Node, op: Op, args: tuple[Any, ...]) -> Tensor:
        if op.kind is OpKind.MATMUL:
            return self._matmul(n, op, args)
        axis = 1 if op.kind is OpKind.CONV else -1
        self._read(op, 0, args[0], (axis % args[0].ndim,))
        if op.geometry is not None and any(op.geometry.padding):
            self._bonds.fix(args[0])
        return self._new_source(op.name, _unlabelled(n, args, {}).shape, axis, is_norm=False)

    def _matmul(self, n: fx.Node, op: Op, args: tuple[Any, ...]) -> Tensor:
        first: Tensor = args[0]
        second: Tensor = args[1]
        result: Tensor = _unlabelled(n, args, {})
        heads = tuple(range(1, second.ndim - 2))
        if op.role is Role.ATTENTION_QK and first.ndim == second.ndim:
            pair = [
                _by_channel(op, index, labels, (*heads, channels))
                for index, labels, channels in ((0, first, first.ndim - 1), (1, second, second.ndim - 2))
            ]
            if pair[0] is not None and pair[1] is not None:
                self._similarities.append((pair[0], pair[1]))
                if _becomes_softmax(n):
                    self._before_softmax.add(op.name)
            else:
                self._bonds.bind(first)
                self._bonds.bind(second)
            return result
        self._bonds.bind(first)
        if op.role is not Role.ATTENTION_AV or not self._read(op, 1, second, (*heads, second.ndim - 1)):
            self._bonds.bind(second)
            return result
        if n.args[0].target is not aten.softmax.int:  # type: ignore[union-attr]
            self._bonds.fix(second)
        return second[..., :1, :].expand(result.shape).contiguous()

    def _read(self, op: Op, index: int, labels: Tensor, axes: tuple[int, ...]) -> bool:
        """Note that an operation reads these atoms by channel; whether it does."""
        reader = _by_channel(op, index, labels, axes)
        if reader is None:
            self._bonds.bind(labels)
        elif (reader.atoms != NO_ATOM).any():
            self._readers.append(reader)
        return reader is not None

    def _new_source(self, name: str, shape: torch.Size, axis: int, *, is_norm: bool) -> Tensor:
        channels = shape[axis]
        first = self._bonds.new(channels)
        self._sources.append(Source(name, first, channels, is_norm))
        view = [1] * len(shape)
        view[axis] = channels
        return torch.arange(first, first + channels).view(view).expand(shape).contiguous()


def _broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    return first, second


def _by_channel(op: Op, index: int, labels: Tensor, axes: tuple[int, ...]) -> Reader | None:
    """An operand whose atoms depend on the place along these axes alone; None if they do not."""
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    lowest, highest = labels.amin(others), labels.amax(others)
    if not torch.equal(lowest, highest):
        return None
    return Reader(op.name, index, op.inputs[index], axes, lowest.numpy())


def _becomes_softmax(n: fx.Node) -> bool:
    """Whether these scores go into a softmax over the keys and nowhere else, scaled and with masks at most."""
    if len(n.users) != 1:
        return False
    user = next(iter(n.users))
    if user.target is aten.softmax.int:
        return bool(user.args[1] == -1)
    passes = user.target in (aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor) and user.args[0] is n
    is_number = passes and not isinstance(user.args[1], fx.Node)
    is_mask = passes and user.target is aten.add.Tensor
    return (is_number or is_mask) and _becomes_softmax(user)


def _averaged(n: fx.Node, args: tuple[Any, ...]) -> Tensor | None:
    """Labels after a mean or maximum over positions; None for another operation, or if atoms would be mixed."""
    if n.target is aten.adaptive_avg_pool2d.default and list(args[1]) in ([1, 1], [1]):
        axes, keep = [-2, -1], True
    elif n.target is aten.mean.dim:
        axes, keep = list(args[1]), len(args) > 2 and bool(args[2])
    else:
        return None
    lowest, highest = args[0].amin(axes, keep), args[0].amax(axes, keep)
    return lowest if torch.equal(lowest, highest) else None


def _unlabelled(n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Tensors without atoms, of the shapes that the operation gives."""

    def shape_only(value: Any) -> Any:  # noqa: ANN401
        return torch.empty(value.shape, device="meta") if isinstance(value, Tensor) else value

    found = n.target(*fx.node.map_aggregate(args, shape_only), **fx.node.map_aggregate(kwargs, shape_only))  # type: ignore
    return fx.node.map_aggregate(
        found, lambda value: torch.full(value.shape, NO_ATOM) if isinstance(value, Tensor) else value
    )


def _tensors(*values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())


def _is_own(n: fx.Node, position: int) -> bool:
    """Whether the affine parameters of a norm are stored ones that no other node reads."""
    stored = n.args[position : position + 2]
    return len(stored) == 2 and all(
        isinstance(value, fx.Node) and value.op == "get_attr" and len(value.users) == 1 for value in stored
    )
