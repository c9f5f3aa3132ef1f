"""Kernels that run the same instructions on as much memory: one time is the time of all of them."""

from __future__ import annotations

import re
from dataclasses import replace

from evoquant.kernels.case import KernelCase, KernelOp

_WIDTHS_DIFFER = ("avx2",)
"""Instruction sets whose loops depend on how many products fit 16 bits, so on widths and on values of weights."""
_MOST_WEIGHTS = 4 << 20
"""Up to this many weights are bytes when they are multiplied, whatever they are stored as; more may be decoded then."""
_BYTES = re.compile(
    r"w[1-8]a([1-8])(?:-(?:normal|log2|ternary|binary))?(-loga|-lloyd)?((?:-g\d+)?(?:-u8in)?(?:-u8out|-lloydout)?)"
)


def executed_as(case: KernelCase, isa: str) -> KernelCase:
    """The case that stands for all that run as this one does.

    Where sums are exact in 32 bits, weights of all widths and codebooks are multiplied as bytes, and so are codes of
    equal steps: products of 8 by 8 bits stand for them.

    Args:
        case: Any case.
        isa: Name of the instruction set that it runs on.
    """
    match = _BYTES.fullmatch(case.precision)
    if match is None or isa in _WIDTHS_DIFFER or _weights(case) > _MOST_WEIGHTS:
        return case
    codes, scheme, rest = match.groups()
    width = {None: "8", "-lloyd": "4"}.get(scheme, codes)
    return replace(case, precision=f"w8a{width}{scheme or ''}{rest}")


def _weights(case: KernelCase) -> int:
    op = case.op.partition("+")[0]
    if op == KernelOp.GEMM:
        _, n, k = case.shape
        return n * k
    if op == KernelOp.CONV:
        _, _, channels, out_channels, kernel_h, kernel_w, *_, groups = case.shape
        return out_channels * kernel_h * kernel_w * channels // groups
    return 0
