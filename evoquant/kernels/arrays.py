"""Checks of arrays before they reach native code: type, shape, layout, with an error that says what came instead."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evoquant.errors import KernelError

FloatArray = NDArray[np.float32]
CodeArray = NDArray[np.uint8]
Values = FloatArray | CodeArray
"""Real values, or codes of 8 bits."""


CACHE_LINE_BYTES = 64


def aligned(shape: tuple[int, ...]) -> FloatArray:
    """A zeroed array that begins at a cache line, as the tensors of a packed model do."""
    size = int(np.prod(shape, dtype=np.int64))
    memory = np.zeros(size + CACHE_LINE_BYTES // 4, np.float32)
    start = -memory.ctypes.data % CACHE_LINE_BYTES // 4
    return memory[start : start + size].reshape(shape)


def aligned_codes(shape: tuple[int, ...]) -> CodeArray:
    """Zeroed codes of 8 bits that begin at a cache line."""
    size = int(np.prod(shape, dtype=np.int64))
    return aligned((-(-size // 4),)).view(np.uint8)[:size].reshape(shape)


def aligned_copy(array: FloatArray) -> FloatArray:
    """The same values in an array that begins at a cache line."""
    copy = aligned(array.shape)
    copy[...] = array
    return copy


def described(array: object) -> str:
    """Type, shape and layout of whatever was passed, for an error message."""
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    layout = "" if array.flags.c_contiguous else ", not contiguous"
    aligned = "" if array.flags.aligned else ", not aligned"
    return f"{array.dtype} {array.shape}{layout}{aligned}"


def _expected(dtype: DTypeLike, shape: tuple[int | None, ...] | None, note: str) -> str:
    sizes = "" if shape is None else " (" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    return f"{np.dtype(dtype)}{sizes}{note}"


def _fits(array: NDArray[np.generic], dtype: DTypeLike, shape: tuple[int | None, ...] | None) -> bool:
    if array.dtype != dtype or not array.flags.aligned:
        return False
    if shape is None:
        return True
    return array.ndim == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, array.shape, strict=True)
    )


def check_array(
    who: str, name: str, array: object, dtype: DTypeLike, shape: tuple[int | None, ...] | None = None
) -> None:
    """Require a contiguous array of this type and shape; None leaves a size, or the whole shape, open.

    Raises:
        KernelError: If it is something else; the message says what was expected and what came.
    """
    if not (isinstance(array, np.ndarray) and _fits(array, dtype, shape) and array.flags.c_contiguous):
        expected = _expected(dtype, shape, ", contiguous")
        raise KernelError(f"{who}: expected {name} {expected}, but got {described(array)}.")


def check_rows(
    who: str, name: str, array: object, shape: tuple[int | None, ...], *, dtype: DTypeLike = np.float32
) -> None:
    """Require an array whose last axis is contiguous; the others may be strided.

    Raises:
        KernelError: If it is something else.
    """
    if not (
        isinstance(array, np.ndarray)
        and _fits(array, dtype, shape)
        and (array.shape[-1] <= 1 or array.strides[-1] == array.itemsize)
    ):
        expected = _expected(dtype, shape, ", last axis contiguous")
        raise KernelError(f"{who}: expected {name} {expected}, but got {described(array)}.")


def output(who: str, out: FloatArray | None, shape: tuple[int, ...]) -> FloatArray:
    """The checked output array, or a new one.

    Raises:
        KernelError: If ``out`` does not fit.
    """
    found = np.empty(shape, np.float32) if out is None else out
    _check_output(who, found, np.float32, shape)
    return found


def code_output(who: str, out: Values | None, shape: tuple[int, ...]) -> CodeArray:
    """As ``output``, for codes of 8 bits."""
    found = np.empty(shape, np.uint8) if out is None else out
    _check_output(who, found, np.uint8, shape)
    return found.view(np.uint8)


def _check_output(who: str, out: Values, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    check_array(who, "out", out, dtype, shape)
    if not out.flags.writeable:
        raise KernelError(f"{who}: expected out to be writeable, but got a read-only array.")
