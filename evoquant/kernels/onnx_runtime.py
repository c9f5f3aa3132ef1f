"""ONNX Runtime as a baseline: held to the instruction set that our kernels are held to, where the machine can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np

from evoquant.errors import KernelError
from evoquant.kernels import onnx_baseline
from evoquant.kernels.case import KernelCase, KernelOp
from evoquant.kernels.native import info, isa_number, native

_held_to: list[str | None] = []


def is_available() -> bool:
    """Whether onnx and onnxruntime are installed."""
    return find_spec("onnx") is not None and find_spec("onnxruntime") is not None


def load(isa: str | None = None) -> str | None:
    """Import ONNX Runtime, which chooses its kernels for good when it is used for the first time.

    That choice is made by CPUID. Where the machine has more than ``isa``, CPUID answers in the meantime as a processor
    with no more than that would, so that both sides of a comparison have the same instructions.

    Args:
        isa: Instruction set of our kernels; None takes the best, capped by ``EVOQUANT_ISA``.

    Returns:
        The instruction set that ONNX Runtime is held to, or None if it chose from all that the machine has.
    """
    if not _held_to:
        _held_to.append(_load_within(info().used if isa is None else isa))
    return _held_to[0]


def _load_within(isa: str) -> str | None:
    wider = info().supported[info().supported.index(isa) + 1 :] if isa in info().supported else ()
    if not wider or "onnxruntime" in sys.modules:
        return None
    try:
        with _capped(isa):
            _use_once()
    except KernelError:  # no CPUID faulting here: said by the None
        return None
    return isa


@contextmanager
def _capped(isa: str) -> Iterator[None]:
    module = native()
    try:
        module.cap_cpuid(isa_number(isa))
    except RuntimeError as error:
        raise KernelError(str(error)) from error
    try:
        yield
    finally:
        module.uncap_cpuid()


def _use_once() -> None:
    """One small product: the kernels are chosen at the first use, not at the import."""
    product = KernelCase(KernelOp.GEMM, (4, 4, 4))
    onnx_baseline.baselines(product, np.random.default_rng(0), threads=1, as_conv=False)["fp32"][0](1)
