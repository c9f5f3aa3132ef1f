"""Integer codes in as few bytes as their bits allow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evoquant.errors import PrecisionError

PACKED_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def pack(codes: Tensor, *, bits: int) -> Tensor:
    """Pack integer codes into bytes, first value in the lowest bits.

    Rows are padded with zero bits to a whole byte, so a row can be unpacked without its neighbours. Negative codes are
    stored as two's complement of ``bits`` bits. With ``bits=2`` the values ``0, 1, -2, -1`` become ``0b11_10_01_00``.

    Args:
        codes: Integers of shape (rows, columns), all in [-2**(bits-1), 2**(bits-1) - 1] or all in [0, 2**bits - 1].
        bits: Bits per value: 1 to 8, or 16.

    Returns:
        Uint8 of shape (rows, ceil(columns * bits / 8)).

    Raises:
        PrecisionError: If ``bits`` has no packing, the shape has not two dimensions, or a code does not fit; the
            message names the first one.
    """
    _check_bits(bits)
    if codes.ndim != 2:
        raise PrecisionError(
            f"Expected codes of shape (rows, columns), but got {tuple(codes.shape)}. Flatten each row."
        )
    values = codes.numpy().astype(np.int32)
    lower = -(2 ** (bits - 1)) if values.size and values.min() < 0 else 0
    upper = lower + 2**bits - 1
    outside = np.argwhere((values < lower) | (values > upper))
    if outside.size:
        row, column = outside[0]
        raise PrecisionError(
            f"Codes of {bits} bits must lie in [{lower}, {upper}], but got {values[row, column]} at row {row}, "
            f"column {column}."
        )
    octets = values.astype("<u2").view(np.uint8).reshape(*values.shape, 2)
    planes = np.unpackbits(octets, axis=2, count=bits, bitorder="little").reshape(len(values), -1)
    return torch.from_numpy(np.packbits(planes, axis=1, bitorder="little"))


def unpack(packed: Tensor, *, bits: int, columns: int, is_signed: bool) -> Tensor:
    """The inverse of ``pack``.

    Args:
        packed: Uint8 of shape (rows, ceil(columns * bits / 8)).
        bits: Bits per value: 1 to 8, or 16.
        columns: Values in a row.
        is_signed: Whether codes are two's complement.

    Returns:
        Int32 of shape (rows, columns).

    Raises:
        PrecisionError: If ``bits`` has no packing or the shape does not fit.
    """
    _check_bits(bits)
    expected = (columns * bits + 7) // 8
    if packed.ndim != 2 or packed.shape[1] != expected or packed.dtype is not torch.uint8:
        raise PrecisionError(
            f"Expected uint8 rows of {expected} bytes for {columns} values of {bits} bits, "
            f"but got {packed.dtype} of shape {tuple(packed.shape)}."
        )
    planes = np.unpackbits(packed.numpy(), axis=1, count=columns * bits, bitorder="little")
    octets = np.packbits(planes.reshape(packed.shape[0], columns, bits), axis=2, bitorder="little")
    values = octets[..., 0].astype(np.int32) if bits <= 8 else octets.view("<u2")[..., 0].astype(np.int32)
    if is_signed:
        sign_bit = 2 ** (bits - 1)
        values = (values ^ sign_bit) - sign_bit
    return torch.from_numpy(values)


def _check_bits(bits: int) -> None:
    if bits not in PACKED_BITS:
        raise PrecisionError(f"bits must be one of {', '.join(map(str, PACKED_BITS))}, but got {bits}.")
