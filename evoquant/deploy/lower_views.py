"""Nodes that only look at a tensor in another way: they cost nothing until a kernel needs other memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import fx

from evoquant.deploy.layout import Layout
from evoquant.deploy.lowering import Lowering, handles

Arguments = tuple[Any, ...]
Options = Mapping[str, Any]


@handles("reshape", "view", "_unsafe_view", "flatten", "squeeze", "unsqueeze")
def _reshape(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x: Layout = arguments[0]
    return lowering.space.reshaped(node.name, x, lowering.shape(node))


@handles("permute")
def _permute(_lowering: Lowering, _node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x: Layout = arguments[0]
    return x.permute(tuple(arguments[1]))


@handles("transpose", "t")
def _transpose(_lowering: Lowering, _node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x: Layout = arguments[0]
    first, second = arguments[1:] or (0, 1)
    order = list(range(len(x.axes)))
    order[first], order[second] = order[second], order[first]
    return x.permute(tuple(order))


@handles("clone", "contiguous", "alias", "detach", "dropout", "lift_fresh_copy")
def _same(_lowering: Lowering, _node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x: Layout = arguments[0]
    return x


@handles("expand")
def _expand(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x: Layout = arguments[0]
    return x.expand(lowering.shape(node))


@handles("slice")
def _slice(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    defaults: tuple[Any, ...] = (0, None, None, 1)
    x, axis, start, stop, step = (*arguments, *defaults[len(arguments) - 1 :])
    begin, end, _ = slice(start, stop).indices(x.shape[axis])
    return _part(lowering, node, x, axis, begin, end - begin) if step == 1 else NotImplemented


@handles("select")
def _select(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    x, axis, index = arguments
    axis %= len(x.axes)
    return _part(lowering, node, x, axis, index % x.shape[axis], 1).without(axis)


@handles("unbind")
def _unbind(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> tuple[Layout, ...]:
    x, axis = (*arguments, 0)[:2]
    axis %= len(x.axes)
    return tuple(_part(lowering, node, x, axis, index, 1).without(axis) for index in range(x.shape[axis]))


@handles("split", "split_with_sizes", "chunk")
def _split(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> tuple[Layout, ...]:
    x, sizes, axis = (*arguments, 0)[:3]
    axis %= len(x.axes)
    length = x.shape[axis]
    if isinstance(sizes, int):
        each = -(-length // sizes) if "chunk" in str(node.target) else sizes
        sizes = [min(each, length - start) for start in range(0, length, each)]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(_part(lowering, node, x, axis, start, size) for start, size in zip(starts, sizes, strict=True))


@handles("cat")
def _cat(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Layout:
    parts, axis = (*arguments, 0)[:2]
    shape = lowering.shape(node)
    axis %= len(shape)
    first: Layout = max(parts, key=lambda part: prod(part.shape))
    is_image = len(shape) == 4 and first.axes == Layout.dense(0, first.shape, order=(0, 2, 3, 1)).axes
    out = lowering.space.new(shape, order=(0, 2, 3, 1) if is_image else None)
    start = 0
    for part in parts:
        target = out.slice(axis, start, part.shape[axis])
        assert target is not None, "a new tensor has one factor on each axis"
        lowering.space.copy(node.name, part, target)
        start += part.shape[axis]
    return out


def _part(lowering: Lowering, node: fx.Node, x: Layout, axis: int, start: int, length: int) -> Layout:
    found = x.slice(axis, start, length)
    if found is None:
        found = lowering.space.ordered(node.name, x).slice(axis, start, length)
    assert found is not None, "a dense tensor has one factor on each axis"
    return found


@handles("sym_size")
def _size(_lowering: Lowering, _node: fx.Node, arguments: Arguments, _options: Options) -> int:
    x, axis = arguments
    size: int = x.shape[axis]
    return size
