"""The steps and buffers of a recipe while it is written, and the copies that put a tensor where a kernel wants it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from evoquant.deploy.layout import Axis, Layout, common_factors
from evoquant.deploy.recipe import Buffer, Step, View

_ORDER_OF_MEMORY = (-1,)
CODES_PER_VALUE = 4


class Workspace:
    """Collects steps, buffers, constants and fallbacks."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.constants: dict[str, Tensor] = {}
        self.fallbacks: dict[str, str] = {}
        self._constant_layouts: dict[str, Layout] = {}
        self._copies: dict[tuple[Layout, tuple[int, ...]], Layout] = {}

    def new(self, shape: tuple[int, ...], *, order: tuple[int, ...] | None = None) -> Layout:
        """A tensor in a buffer of its own; see ``Layout.dense``."""
        self.buffers.append(Buffer(prod(shape)))
        return Layout.dense(len(self.buffers) - 1, shape, order=order)

    def new_like(self, layout: Layout) -> Layout:
        """A tensor in a buffer of its own that lies in it like a dense one lies in its buffer."""
        assert layout.is_dense, "the axes of a dense tensor fill a buffer"
        return self.new_of(layout.axes)

    def new_of(self, axes: tuple[Axis, ...]) -> Layout:
        """A tensor in a buffer of its own with these axes, which fill it."""
        layout = Layout(len(self.buffers), axes)
        self.buffers.append(Buffer(layout.elements))
        return layout

    def hold_codes(self, layout: Layout) -> None:
        """Let a new tensor hold codes of 8 bits: no step but the one product that reads it can take it."""
        self.buffers[layout.buffer] = Buffer(-(-layout.elements // CODES_PER_VALUE), is_codes=True)

    def constant(self, name: str, value: Tensor) -> Layout:
        """A stored tensor; the same name is stored once."""
        if name not in self._constant_layouts:
            self.constants[name] = value.detach().contiguous().float().clone()
            self.buffers.append(Buffer(value.numel(), name))
            self._constant_layouts[name] = Layout.dense(len(self.buffers) - 1, tuple(value.shape))
        return self._constant_layouts[name]

    def add(
        self, kind: str, node: str, reads: Mapping[str, View], writes: View, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write a step."""
        self.steps.append(Step(kind, node, dict(reads), writes, dict(settings or {})))

    def copy(self, node: str, x: Layout, out: Layout, *, factor: float = 1.0) -> None:
        """Write a copy between tensors of one shape."""
        axes = common_factors(x, out)
        assert axes is not None, "one of both is dense in an order of whole axes"
        shape = tuple(size for size, _, _ in axes)
        source = View(x.buffer, shape, tuple(stride for _, stride, _ in axes), x.offset)
        target = View(out.buffer, shape, tuple(stride for _, _, stride in axes), out.offset)
        self.add("copy", node, {"x": source}, target, {"factor": factor})

    def ordered(self, node: str, layout: Layout, order: tuple[int, ...] | None = None) -> Layout:
        """The tensor densely in this order of axes: itself, or a copy, which is made once."""
        chosen = tuple(range(len(layout.axes))) if order is None else order
        wanted = Layout.dense(layout.buffer, layout.shape, order=chosen)
        if wanted.axes == layout.axes:
            return layout
        key = (layout, chosen)
        if key not in self._copies:
            out = self.new(layout.shape, order=chosen)
            self.copy(node, layout, out)
            self._copies[key] = out
        return self._copies[key]

    def copied(self, layout: Layout) -> list[Layout]:
        """Dense copies of a tensor that there are already."""
        return [copy for (source, _), copy in self._copies.items() if source == layout]

    def dense(self, node: str, layout: Layout) -> Layout:
        """The tensor without gaps: itself, or a copy, in the order of memory if nothing is repeated."""
        if layout.is_dense:
            return layout
        axes = layout.compact()
        if axes is None:
            return self.ordered(node, layout)
        key = (layout, _ORDER_OF_MEMORY)
        if key not in self._copies:
            out = self.new_of(axes)
            self.copy(node, layout, out)
            self._copies[key] = out
        return self._copies[key]

    def reshaped(self, node: str, layout: Layout, shape: tuple[int, ...]) -> Layout:
        """The tensor in another shape, copied if need be."""
        found = layout.reshape(shape)
        if found is None:
            found = self.ordered(node, layout).reshape(shape)
        assert found is not None, "a dense tensor has every shape"
        return found

    def rows(self, node: str, layout: Layout) -> View:
        """The tensor as a matrix (rows, columns) with contiguous columns, copied if need be."""
        found = layout.rows()
        if found is None:
            layout = self.ordered(node, layout)
            found = layout.rows()
        assert found is not None, "a dense tensor is a matrix"
        rows, columns, stride = found
        return View(layout.buffer, (rows, columns), (stride, 1), layout.offset)

    def dense_rows(self, node: str, layout: Layout) -> View:
        """The tensor as a contiguous matrix (rows, columns), copied if need be."""
        return self.rows(node, self.ordered(node, layout))

    def image(self, node: str, layout: Layout) -> View:
        """A tensor (1, channels, height, width) as a contiguous image (height, width, channels), copied if need be."""
        layout = self.ordered(node, layout, (0, 2, 3, 1))
        _, channels, height, width = layout.shape
        return View(layout.buffer, (height, width, channels), (width * channels, channels, 1), layout.offset)


def flat(layout: Layout) -> View:
    """A dense tensor as its values in the order of memory."""
    return View(layout.buffer, (layout.elements,), (1,), layout.offset)


def strided(layout: Layout) -> View | None:
    """The tensor with plain strides, or None if it has none."""
    strides = layout.strides
    return None if strides is None else View(layout.buffer, layout.shape, strides, layout.offset)
