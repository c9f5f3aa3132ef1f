"""Streams: channels that any one rotation may mix, because only linear maps and whole norms meet them.

The residual stream of a transformer is one, from the convolution that makes the tokens to the norm behind the last
block; the outputs of linear bottlenecks are, and the channels of the heads of an attention: those of q together with
those of k, whose product a common rotation leaves alone, and those of v, which leave the attention as they came.

They are found by running the program once on labels, as in ``channel_flow``: every element holds the place of its
channel among the outputs of the product that made it, so that views need no rule of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx

from evoquant.calibrate.channel_flow import (
    NORMS,
    VIEWS,
    averaged,
    by_axes,
    counted,
    is_own,
    tensors_in,
    unlabelled,
    without_labels,
)
from evoquant.graph import CapturedModel
from evoquant.graph.constants import attribute
from evoquant.types import Op, OpKind

aten = torch.ops.aten

_NONE = -1
LEAST_CHANNELS = 8
"""Streams with fewer channels are left alone: there is little to mix."""
WITH_BATCH = 3
"""Dimensions of a batch of matrices."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Output or input channels of one operation that belong to a stream.

    Attributes:
        op: Name of the operation.
        places: Which channels, (sets, channels): each set, a head, is mixed in itself.
        norm: For inputs, the node of the norm in front of them, whose affine part the operation can take.
    """

    op: str
    places: Tensor
    norm: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Channels that one rotation may mix.

    Attributes:
        name: The first operation that writes them, or the matmul that reads them.
        channels: How many a rotation mixes.
        writers: Whose outputs they are.
        readers: Who multiplies them with stored weights.
        constants: Path and axis of stored tensors that are added to them or stand beside them (positions, class token).
        norms: Nodes of norms over all of them, behind which there are readers alone.
    """

    name: str
    channels: int
    writers: tuple[Side, ...]
    readers: tuple[Side, ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    norms: tuple[str, ...] = ()


def find_streams(captured: CapturedModel) -> tuple[Stream, ...]:
    """All streams of a captured model that somebody reads, in the order of computation."""
    tracer = _StreamTracer(captured)
    with torch.inference_mode():
        tracer.run(torch.full((1, *captured.graph.input_shape[-3:]), _NONE, dtype=torch.int64))
    return tracer.result()


@dataclass(slots=True)
class _Known:
    """What is known so far of the outputs of products that are added to each other."""

    channels: int
    writers: list[str]
    is_free: bool = True
    constants: list[tuple[str, int]] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[tuple[str, str | None]] = field(default_factory=list)
    heads: list[_Heads] = field(default_factory=list)

    def join(self, other: _Known) -> None:
        self.is_free &= other.is_free
        self.writers += other.writers
        self.constants += other.constants
        self.norms += other.norms
        self.readers += other.readers
        self.heads += other.heads

    def whole(self) -> Stream | None:
        """All channels as one stream."""
        if not self.is_free or not self.readers or self.heads or self.channels < LEAST_CHANNELS:
            return None
        places = torch.arange(self.channels)[None]
        return Stream(
            self.writers[0],
            self.channels,
            tuple(Side(writer, places) for writer in self.writers),
            tuple(Side(op, places, norm) for op, norm in self.readers),
            tuple(self.constants),
            tuple(self.norms),
        )

    @property
    def is_of_heads(self) -> bool:
        """Whether nothing but attentions reads them, each channel at one place."""
        used = Counter(int(place) for heads in self.heads for place in heads.places.reshape(-1))
        others = self.readers or self.constants or self.norms or len(self.writers) > 1
        return self.is_free and not others and max(used.values(), default=0) == 1


@dataclass(slots=True, eq=False)
class _Heads:
    """One operand of an attention matmul: its channels by head, (heads, channels), and who reads the result."""

    matmul: str
    stream: int
    places: Tensor
    readers: list[Side] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Held:
    """What a node holds: channels of a stream, behind a norm or an attention, or neither."""

    stream: int
    norm: str | None = None
    values: _Heads | None = None

    @property
    def is_plain(self) -> bool:
        return self.norm is None and self.values is None


class _StreamTracer(fx.Interpreter):
    def __init__(self, captured: CapturedModel) -> None:
        super().__init__(captured.program)
        self._ops = {op.node: op for op in captured.graph.ops}
        self._known: list[_Known] = []
        self._root: list[int] = []
        self._held: dict[fx.Node, _Held] = {}
        self._constant: dict[fx.Node, fx.Node] = {}
        self._attentions: list[tuple[_Heads, ...]] = []

    def result(self) -> tuple[Stream, ...]:
        """What the run has found."""
        roots = [self._known[index] for index, root in enumerate(self._root) if index == root]
        whole = [stream for stream in (known.whole() for known in roots) if stream is not None]
        heads = [self._of_heads(operands) for operands in self._attentions]
        return (*whole, *(stream for stream in heads if stream is not None))

    def _of_heads(self, operands: tuple[_Heads, ...]) -> Stream | None:
        channels = operands[0].places.shape[1]
        known = [self._known[self._root_of(heads.stream)] for heads in operands]
        if channels < LEAST_CHANNELS or not all(one.is_of_heads for one in known):
            return None
        if len(operands) == 1 and not operands[0].readers:
            return None
        writers = (Side(one.writers[0], heads.places) for one, heads in zip(known, operands, strict=True))
        return Stream(operands[0].matmul, channels, tuple(writers), tuple(operands[-1].readers))

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - labels, or the sizes that views need
        """Labels of one node."""
        if n.op == "get_attr":
            self._constant[n] = n
            return torch.full_like(super().run_node(n), _NONE, dtype=torch.int64)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            self._bind(*n.all_input_nodes)
        if n.op != "call_function":
            return super().run_node(n)
        if next(tensors_in(args, kwargs), None) is None:
            return without_labels(super().run_node(n))
        found = self._followed(n, args, kwargs)
        if found is not None:
            return found
        self._bind(*n.all_input_nodes)
        return self._written(n, args, kwargs)

    def _followed(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """The result of an operation that lets streams through or reads them; None where it does not."""
        op = self._ops.get(n.name)
        if op is not None and op.kind is OpKind.MATMUL:
            return self._multiplied(n, op, args)
        if op is not None:
            return self._written(n, args, kwargs) if self._reads(n, op, args[0]) else None
        if n.target is aten.cat.default:
            return self._joined(n, args, cast(Sequence[fx.Node], n.args[0]), args[0], args[1] if len(args) > 1 else 0)
        if n.target is aten.add.Tensor and not kwargs and len(list(tensors_in(args[:2]))) == 2:
            return self._joined(n, args, cast(Sequence[fx.Node], n.args[:2]), args[:2], None)
        if n.target in VIEWS:
            return self._viewed(n, super().run_node(n))
        if n.target in NORMS:
            return self._normed(n, args)
        held = self._held.get(n.all_input_nodes[0])
        if held is None:
            return None
        is_scaled = n.target is aten.mul.Tensor and not isinstance(args[1], Tensor) and held.is_plain
        result: Tensor | None = args[0] if is_scaled else averaged(n, args)
        if result is not None:
            self._held[n] = held
        return result

    def _viewed(self, n: fx.Node, labels: Any) -> Any:  # noqa: ANN401
        source = n.all_input_nodes[0]
        if source in self._held:
            self._held[n] = self._held[source]
        if n.target is aten.expand.default and source in self._constant:
            self._constant[n] = self._constant[source]
        return labels

    def _reads(self, n: fx.Node, op: Op, labels: Tensor) -> bool:
        """Whether a product can take a rotation in its columns; it is noted then."""
        held = self._held.get(n.all_input_nodes[0])
        geometry = op.geometry
        if held is None or (geometry is not None and geometry.groups > 1):
            return False
        places = by_axes(labels, (1 if op.kind is OpKind.CONV else labels.ndim - 1,))
        if places is None or (geometry is not None and any(geometry.padding) and held.norm is not None):
            return False
        if held.values is not None:
            columns = _columns(places, held.values.places)
            if columns is not None:
                held.values.readers.append(Side(op.name, columns))
            return columns is not None
        stream = self._stream(held)
        if not torch.equal(places, torch.arange(stream.channels)):
            return False
        stream.readers.append((op.name, held.norm))
        return True

    def _multiplied(self, n: fx.Node, op: Op, args: tuple[Any, ...]) -> Tensor | None:
        """A product of q and k, whose channels are summed over, or of something with v, whose channels it has."""
        first, second = args[0], args[1]
        if first.ndim != second.ndim or first.ndim < WITH_BATCH:
            return None
        result: Tensor = unlabelled(n, args, {})
        q = self._heads(op, n.args[0], first, first.ndim - 1)
        k = self._heads(op, n.args[1], second, second.ndim - 2)
        if q is not None and k is not None and q.places.shape == k.places.shape:
            self._note(q, k)
            return result
        v = self._heads(op, n.args[1], second, second.ndim - 1)
        if v is None:
            return None
        self._bind(n.all_input_nodes[0])
        self._note(v)
        self._held[n] = _Held(v.stream, values=v)
        averages: Tensor = second[..., :1, :].expand(result.shape).contiguous()
        return averages

    def _heads(self, op: Op, node: Any, labels: Tensor, axis: int) -> _Heads | None:  # noqa: ANN401
        """An operand of a matmul with its channels along an axis, and its heads along those before the matrices."""
        held = self._held.get(node)
        if held is None or not held.is_plain:
            return None
        places = by_axes(labels, (*range(1, labels.ndim - 2), axis))
        return None if places is None else _Heads(op.name, held.stream, places.reshape(-1, labels.shape[axis]))

    def _note(self, *operands: _Heads) -> None:
        self._attentions.append(operands)
        for heads in operands:
            self._known[self._root_of(heads.stream)].heads.append(heads)

    def _written(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """The result of a product, a new stream, or of something that holds none."""
        result = unlabelled(n, args, kwargs)
        op = self._ops.get(n.name)
        if op is None or op.kind is OpKind.MATMUL or (op.geometry is not None and op.geometry.groups > 1):
            return result
        axis = 1 if op.kind is OpKind.CONV else result.ndim - 1
        self._held[n] = _Held(len(self._known))
        self._root.append(len(self._known))
        self._known.append(_Known(result.shape[axis], [op.name]))
        return counted(result.shape, axis)

    def _joined(
        self,
        n: fx.Node,
        args: tuple[Any, ...],
        nodes: Sequence[fx.Node],
        labels: Sequence[Tensor],
        along: int | None,
    ) -> Tensor | None:
        """A sum, or what stands side by side along an axis: all of one stream, with constants perhaps."""
        held = [self._held[node] for node in nodes if node in self._held]
        if not held or not all(one.is_plain for one in held):
            return None
        channels = self._stream(held[0]).channels
        rank = max(value.ndim for value in labels)
        axes = {_axis(value, channels) for node, value in zip(nodes, labels, strict=True) if node in self._held}
        axis = axes.pop()
        has_own_rank = all(value.ndim == rank for node, value in zip(nodes, labels, strict=True) if node in self._held)
        if axes or axis is None or not has_own_rank or (along is not None and along % rank == axis):
            return None
        constants = [self._constant_of(node, axis - rank, channels) for node in nodes if node not in self._held]
        if any(one is None for one in constants):
            return None
        for other in held[1:]:
            self._unite(held[0], other)
        self._stream(held[0]).constants += [one for one in constants if one is not None]
        self._held[n] = held[0]
        return counted(unlabelled(n, args, {}).shape, axis)

    def _constant_of(self, node: fx.Node, axis: int, channels: int) -> tuple[str, int] | None:
        """Path and axis, counted from the end, of a stored tensor with a value for each channel, read here alone."""
        stored = self._constant.get(node)
        while stored is not None and node is not stored and len(node.users) == 1:
            node = node.all_input_nodes[0]
        if stored is None or len(stored.users) > 1 or node is not stored:
            return None
        shape = attribute(self.module, str(stored.target)).shape  # type: ignore[arg-type]
        return (str(stored.target), axis) if -axis <= len(shape) and shape[axis] == channels else None

    def _normed(self, n: fx.Node, args: tuple[Any, ...]) -> Tensor | None:
        """A norm over all channels of a stream, and of nothing else's."""
        held = self._held.get(n.all_input_nodes[0])
        weight_position, channel_axis = NORMS[n.target]
        if held is None or not held.is_plain or not is_own(n, weight_position):
            return None
        stream = self._stream(held)
        labels: Tensor = args[0]
        is_whole = args[1] == 1 if n.target is aten.group_norm.default else list(args[1]) == [stream.channels]
        if not is_whole or _axis(labels, stream.channels) != channel_axis % labels.ndim:
            return None
        stream.norms.append(n.name)
        self._held[n] = _Held(held.stream, norm=n.name)
        return labels

    def _bind(self, *nodes: fx.Node) -> None:
        """No rotation of what these nodes hold."""
        for node in nodes:
            if node in self._held:
                self._stream(self._held[node]).is_free = False

    def _stream(self, held: _Held) -> _Known:
        return self._known[self._root_of(held.stream)]

    def _root_of(self, stream: int) -> int:
        while self._root[stream] != stream:
            stream = self._root[stream]
        return stream

    def _unite(self, first: _Held, second: _Held) -> None:
        kept, gone = sorted((self._root_of(first.stream), self._root_of(second.stream)))
        if kept != gone:
            self._known[kept].join(self._known[gone])
            self._root[gone] = kept


def _axis(labels: Tensor, channels: int) -> int | None:
    """The axis that all channels of a stream lie along in order; None if there is none."""
    for axis in range(labels.ndim):
        if labels.shape[axis] == channels and torch.equal(labels, counted(labels.shape, axis)):
            return axis
    return None


def _columns(read: Tensor, places: Tensor) -> Tensor | None:
    """Which inputs hold these places, of the shape of ``places``; None unless each of them is held once."""
    in_order, index = read.sort()
    if not torch.equal(in_order, places.reshape(-1).sort().values):
        return None
    return index[torch.searchsorted(in_order, places)]
