"""Where the values of a tensor lie in a buffer, through reshapes and transpositions that need no copy.

Each axis of a tensor is a list of factors (size, stride), outermost first; its index is the mixed-radix number of
theirs. A reshape regroups and splits factors, so it needs a copy only where a boundary falls inside of one. The patches
that MobileViT unfolds an image into are a view in this form, though they are none in plain strides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

Factor = tuple[int, int]
Axis = tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor in a buffer.

    Attributes:
        buffer: Which buffer.
        axes: Factors of each axis, without those of size 1; an axis of size 1 has none.
        offset: Elements before the first value.
    """

    buffer: int
    axes: tuple[Axis, ...]
    offset: int = 0

    @classmethod
    def dense(cls, buffer: int, shape: tuple[int, ...], *, order: tuple[int, ...] | None = None) -> Layout:
        """A tensor that fills a buffer.

        Args:
            buffer: Which buffer.
            shape: Its shape.
            order: Axes from the outermost in memory to the innermost; None for the order of the shape.
        """
        axes: list[Axis] = [()] * len(shape)
        stride = 1
        for axis in reversed(range(len(shape)) if order is None else order):
            axes[axis] = ((shape[axis], stride),) if shape[axis] != 1 else ()
            stride *= shape[axis]
        return cls(buffer, tuple(axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(prod(size for size, _ in axis) for axis in self.axes)

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def factors(self) -> Axis:
        """The factors of all axes, merged where they lie like one."""
        return merged(factor for axis in self.axes for factor in axis)

    @property
    def is_dense(self) -> bool:
        """Whether the values fill one stretch of memory without gaps and repetitions, in any order."""
        expected = 1
        for size, stride in sorted((f for axis in self.axes for f in axis), key=lambda factor: factor[1]):
            if stride != expected:
                return False
            expected *= size
        return True

    @property
    def strides(self) -> tuple[int, ...] | None:
        """Plain strides of the axes, 0 for an axis of size 1; None where an axis has no single stride."""
        if any(len(axis) > 1 for axis in self.axes):
            return None
        return tuple(axis[0][1] if axis else 0 for axis in self.axes)

    def row_stride(self, axis: int) -> int | None:
        """Stride between rows along a contiguous axis, if the other axes number the rows in any order without gaps."""
        if self.axes[axis] != ((self.shape[axis], 1),):
            return None
        others = [factor for index, inner in enumerate(self.axes) if index != axis % len(self.axes) for factor in inner]
        outer = merged(sorted(others, key=lambda factor: -factor[1]))
        if len(outer) > 1 or any(stride < self.shape[axis] for _, stride in outer):
            return None
        return outer[0][1] if outer else self.shape[axis]

    def with_row(self, axis: int, length: int) -> tuple[Axis, ...]:
        """Axes of a tensor that has the rows of this one in the same order, but each of another length, and no gaps."""
        stride = self.row_stride(axis)
        assert stride is not None, "the axis is contiguous"
        axes = [tuple((size, step // stride * length) for size, step in inner) for inner in self.axes]
        axes[axis] = ((length, 1),) if length != 1 else ()
        return tuple(axes)

    def compact(self) -> tuple[Axis, ...] | None:
        """Axes of the same values in the same order of memory without gaps; None where values are repeated."""
        stride, found = 1, {}
        for factor in sorted({f for axis in self.axes for f in axis}, key=lambda factor: factor[1]):
            if factor[1] == 0:
                return None
            found[factor] = (factor[0], stride)
            stride *= factor[0]
        return tuple(merged(found[factor] for factor in axis) for axis in self.axes)

    def reshape(self, shape: tuple[int, ...]) -> Layout | None:
        """The same values in another shape, or None where that needs a copy.

        Args:
            shape: Sizes with the same product; no -1.
        """
        waiting = list(self.factors)[::-1]
        axes: list[Axis] = []
        for size in shape:
            axis: list[Factor] = []
            while size > 1:
                inside, stride = waiting.pop()
                if size % inside == 0:
                    axis.append((inside, stride))
                    size //= inside
                elif inside % size == 0:
                    rest = inside // size
                    axis.append((size, stride * rest))
                    waiting.append((rest, stride))
                    size = 1
                else:
                    return None
            axes.append(merged(axis))
        return replace(self, axes=tuple(axes))

    def permute(self, order: tuple[int, ...]) -> Layout:
        """Axes in another order; negative numbers count from the end."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def slice(self, axis: int, start: int, length: int) -> Layout | None:
        """Part of an axis, or None where that needs a copy."""
        factors = self.axes[axis]
        if len(factors) > 1:
            return None
        stride = factors[0][1] if factors else 0
        axes = list(self.axes)
        axes[axis] = ((length, stride),) if length != 1 else ()
        return replace(self, axes=tuple(axes), offset=self.offset + start * stride)

    def without(self, axis: int) -> Layout:
        """The tensor without an axis of size 1."""
        axes = list(self.axes)
        assert not axes.pop(axis), "only an axis of size 1 can go"
        return replace(self, axes=tuple(axes))

    def expand(self, shape: tuple[int, ...]) -> Layout:
        """Axes of size 1 repeated, new ones in front, as in broadcasting."""
        axes: list[Axis] = [()] * (len(shape) - len(self.axes)) + list(self.axes)
        repeated = [((size, 0),) if not axis and size > 1 else axis for axis, size in zip(axes, shape, strict=True)]
        return replace(self, axes=tuple(repeated))

    def rows(self) -> tuple[int, int, int] | None:
        """Rows, columns and the stride between rows, where the last axis is contiguous and the others are one."""
        columns = self.shape[-1] if self.axes else 1
        last = self.axes[-1] if self.axes else ()
        if len(last) > 1 or (last and last[0][1] != 1):
            return None
        outer = merged(factor for axis in self.axes[:-1] for factor in axis)
        if len(outer) > 1:
            return None
        return (outer[0][0], columns, outer[0][1]) if outer else (1, columns, columns)


def merged(factors: Iterable[Factor]) -> Axis:
    """Neighbouring factors joined where together they count memory with one stride."""
    result: list[Factor] = []
    for size, stride in factors:
        if result and result[-1][1] == stride * size:
            result[-1] = (result[-1][0] * size, stride)
        elif size != 1:
            result.append((size, stride))
    return tuple(result)


def common_factors(a: Layout, b: Layout) -> list[tuple[int, int, int]] | None:
    """Two tensors of one shape as common axes (size, stride in a, stride in b); None where their factors clash."""
    found: list[tuple[int, int, int]] = []
    for left, right in zip(a.axes, b.axes, strict=True):
        inner: list[tuple[int, int, int]] = []
        ours, theirs = list(left), list(right)
        while ours and theirs:
            (size_a, stride_a), (size_b, stride_b) = ours.pop(), theirs.pop()
            size = min(size_a, size_b)
            if size_a % size or size_b % size:
                return None
            inner.append((size, stride_a, stride_b))
            if size_a > size:
                ours.append((size_a // size, stride_a * size))
            if size_b > size:
                theirs.append((size_b // size, stride_b * size))
        assert len(ours) + len(theirs) == 0, "both have the same shape"
        found += reversed(inner)
    return found
