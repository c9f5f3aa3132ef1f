"""Floating-point nodes between the products."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from evoquant.deploy.functions import CLAMPS, PLAIN, activation_of
from evoquant.deploy.layout import Layout
from evoquant.deploy.lower_products import Scores
from evoquant.deploy.lowering import Lowering, handles, operator_name
from evoquant.deploy.recipe import View
from evoquant.deploy.workspace import Workspace, flat

Arguments = tuple[Any, ...]
Options = Mapping[str, Any]


@handles("gelu", *PLAIN, *CLAMPS)
def _activation(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    kind = activation_of(node)
    if kind is None:
        return NotImplemented
    x = lowering.space.dense(node.name, arguments[0])
    out = lowering.space.new_like(x)
    lowering.space.add("activate", node.name, {"x": flat(x)}, flat(out), {"function": kind})
    return out


@handles("add", "mul", "sub", "div")
def _binary(lowering: Lowering, node: fx.Node, arguments: Arguments, options: Options) -> Any:  # noqa: ANN401
    a, b = arguments[:2]
    name = operator_name(node)
    if isinstance(a, Scores) or isinstance(b, Scores):
        return a  # the kernel of the attention divides and multiplies
    if len(arguments) > 2 or options:
        return NotImplemented
    if isinstance(a, Layout) and not isinstance(b, Layout):
        return (
            _scaled(lowering, node, a, float(b) if name == "mul" else 1.0 / float(b))
            if name in ("mul", "div")
            else NotImplemented
        )
    if not isinstance(a, Layout):
        return _scaled(lowering, node, b, float(a)) if name == "mul" else NotImplemented
    if name == "div":
        return NotImplemented
    if name == "sub":
        b, name = _scaled(lowering, node, b, -1.0), "add"
    return _combined(lowering, node, name, a, b)


def _scaled(lowering: Lowering, node: fx.Node, x: Layout, factor: float) -> Layout:
    """One pass that multiplies while it copies; it may read any view."""
    out = lowering.space.new_like(x) if x.is_dense else lowering.space.new(x.shape)
    lowering.space.copy(node.name, x, out, factor=factor)
    return out


def _combined(lowering: Lowering, node: fx.Node, name: str, a: Layout, b: Layout) -> Layout:
    """The sum or product of two tensors, one of which may be repeated along some axes."""
    space, shape = lowering.space, lowering.shape(node)
    if a.shape != shape:
        a, b = b, a
    if a.shape != shape:
        a, b = space.ordered(node.name, a.expand(shape)), b
    a = next((copy for copy in space.copied(a) if copy.is_dense), a) if not a.is_dense else a
    a = space.dense(node.name, a)
    out = space.new_like(a)
    by_column = _by_column(a, b)
    if by_column is not None:
        rows, columns = a.elements // by_column.shape[0], by_column.shape[0]
        scale, shift = (by_column, None) if name == "mul" else (_ones(space, columns), by_column)
        reads = {"x": _matrix(a, rows, columns), "scale": scale, **({} if shift is None else {"shift": shift})}
        space.add("scale_rows", node.name, reads, _matrix(out, rows, columns))
        return out
    b = _alike(space, node, b.expand(shape), a)
    space.add(name, node.name, {"a": flat(a), "b": flat(b)}, flat(out))
    return out


def _by_column(a: Layout, b: Layout) -> View | None:
    """``b`` as one value for each column of ``a`` in memory, if it is that."""
    innermost = [axis for axis, factors in enumerate(a.axes) if factors and factors[-1][1] == 1]
    if len(innermost) != 1 or len(a.axes[innermost[0]]) != 1 or b.elements == a.elements:
        return None
    axis = innermost[0] - len(a.axes)
    columns = a.shape[axis]
    is_column = b.elements == columns and -axis <= len(b.axes) and b.axes[axis] == ((columns, 1),)
    return View(b.buffer, (columns,), (1,), b.offset) if is_column else None


def _ones(space: Workspace, columns: int) -> View:
    return flat(space.constant(f"ones.{columns}", torch.ones(columns)))


def _alike(space: Workspace, node: fx.Node, b: Layout, a: Layout) -> Layout:
    """``b`` in the memory order of ``a``."""
    if b.axes == a.axes:
        return b
    for copy in space.copied(b):
        if copy.axes == a.axes:
            return copy
    out = space.new_like(a)
    space.copy(node.name, b, out)
    return out


def _matrix(layout: Layout, rows: int, columns: int) -> View:
    return View(layout.buffer, (rows, columns), (columns, 1), layout.offset)


@handles("softmax", "_softmax")
def _softmax(lowering: Lowering, node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    x, axis = arguments[:2]
    if isinstance(x, Scores):
        return x
    if axis % len(x.axes) != len(x.axes) - 1:
        return NotImplemented
    x = lowering.space.ordered(node.name, x)
    out = lowering.space.new_like(x)
    columns = x.shape[-1]
    rows = x.elements // columns
    lowering.space.add("softmax", node.name, {"x": _matrix(x, rows, columns)}, _matrix(out, rows, columns))
    return out


@handles("amax")
def _amax(_lowering: Lowering, _node: fx.Node, arguments: Arguments, _options: Options) -> Any:  # noqa: ANN401
    return arguments[0] if isinstance(arguments[0], Scores) else NotImplemented


@handles("layer_norm")
def _layer_norm(lowering: Lowering, node: fx.Node, arguments: Arguments, options: Options) -> Any:  # noqa: ANN401
    given = (*arguments, *(None,) * 3)
    x, shape, weight, bias = given[:4]
    if len(shape) != 1 or not isinstance(options.get("eps", 0.0), float):
        return NotImplemented
    epsilon = arguments[4] if len(arguments) > 4 else options.get("eps", 1e-5)
    space, columns = lowering.space, shape[0]
    x = space.ordered(node.name, x)
    return _normalized(lowering, node, x, columns, weight, bias, {"epsilon": epsilon})


@handles("group_norm")
def _group_norm(lowering: Lowering, node: fx.Node, arguments: Arguments, options: Options) -> Any:  # noqa: ANN401
    given = (*arguments, *(None,) * 3)
    x, groups, weight, bias = given[:4]
    if x.shape[0] != 1:
        return NotImplemented
    epsilon = arguments[4] if len(arguments) > 4 else options.get("eps", 1e-5)
    columns = x.shape[1]
    if not x.is_dense or x.axes[1] != ((columns, 1),):
        x = lowering.space.ordered(node.name, x, (0, *range(2, len(x.axes)), 1))
    return _normalized(lowering, node, x, columns, weight, bias, {"epsilon": epsilon, "groups": groups})


def _normalized(
    lowering: Lowering,
    node: fx.Node,
    x: Layout,
    columns: int,
    weight: Layout | None,
    bias: Layout | None,
    settings: dict[str, Any],
) -> Layout:
    """A norm of a dense tensor whose innermost axis has a weight and a bias for each index."""
    space = lowering.space
    out = space.new_like(x)
    reads = {
        "x": _matrix(x, x.elements // columns, columns),
        "weight": _ones(space, columns) if weight is None else flat(weight),
        "bias": flat(space.constant(f"zeros.{columns}", torch.zeros(columns)) if bias is None else bias),
    }
    space.add(operator_name(node), node.name, reads, _matrix(out, x.elements // columns, columns), settings)
    return out


@handles("mean", "sum", "adaptive_avg_pool2d")
def _mean(lowering: Lowering, node: fx.Node, arguments: Arguments, options: Options) -> Any:  # noqa: ANN401
    x: Layout = arguments[0]
    shape, space = x.shape, lowering.space
    if operator_name(node) == "adaptive_avg_pool2d":
        axes = [2, 3] if list(arguments[1]) == [1, 1] else []
    else:
        axes = sorted(axis % len(shape) for axis in arguments[1]) if len(arguments) > 1 and arguments[1] else []
    kept = [axis for axis in range(len(shape)) if axis not in axes and shape[axis] > 1]
    keeps_axes = len(lowering.shape(node)) == len(shape)
    if not axes or not kept or options or (len(kept) > 1 and not keeps_axes):
        return NotImplemented
    kept.sort(key=lambda axis: -min(stride for _, stride in x.axes[axis]))
    order = (*(axis for axis in range(len(shape)) if axis not in kept), *kept)
    x = space.ordered(node.name, x, order)
    columns = prod(shape[axis] for axis in kept)
    out = space.new(lowering.shape(node), order=order if keeps_axes else None)
    rows = x.elements // columns
    space.add("mean_rows", node.name, {"x": _matrix(x, rows, columns)}, flat(out))
    return _scaled(lowering, node, out, float(rows)) if operator_name(node) == "sum" else out


@handles("max_pool2d")
def _max_pool(lowering: Lowering, node: fx.Node, arguments: Arguments, options: Options) -> Any:  # noqa: ANN401
    defaults: tuple[Any, ...] = ([], 0, 1, False)
    x, kernel, stride, padding, dilation, ceil_mode = (*arguments, *defaults[len(arguments) - 2 :])
    pairs = [_pair(value) for value in (kernel, stride or kernel, padding)]
    is_plain = _pair(dilation) == (1, 1) and not ceil_mode and not options
    if not is_plain or any(height != width for height, width in pairs):
        return NotImplemented
    out = lowering.space.new(lowering.shape(node), order=(0, 2, 3, 1))
    settings = dict(zip(("kernel", "stride", "padding"), (first for first, _ in pairs), strict=True))
    image = lowering.space.image(node.name, x)
    lowering.space.add("max_pool", node.name, {"x": image}, lowering.space.image(node.name, out), settings)
    return out


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])
