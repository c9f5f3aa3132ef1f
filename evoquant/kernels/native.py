"""The compiled module, if it was built, and what it can run on this machine."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from evoquant.errors import KernelError

_BUILD_HINT = "Build it with `pip install --no-build-isolation -e .`, which needs a C++17 compiler and CMake."


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """The native kernels on this machine.

    Attributes:
        available: Whether the native module was built for this Python.
        built: Instruction sets that were compiled in.
        supported: Those of them that this machine executes.
        used: The one that new handles take; empty without a native module.
        threads: Threads of the pool; 0 without a native module.
        version: Version of the native module.
        compiler: What compiled it.
        reason: Why the native module is missing; empty if it is there.
    """

    available: bool
    built: tuple[str, ...]
    supported: tuple[str, ...]
    used: str
    threads: int
    version: str
    compiler: str
    reason: str


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("evoquant.kernels._native"), ""
    except ImportError as error:
        return None, f"the native module is missing ({error}). {_BUILD_HINT}"


def native() -> ModuleType:
    """The compiled module.

    Raises:
        KernelError: If it was not built; the message says how to build it.
    """
    module, reason = _load()
    if module is None:
        raise KernelError(f"Native kernels: {reason}")
    return module


def default_isa() -> int:
    """The number of the best instruction set, capped by the environment variable ``EVOQUANT_ISA``.

    Raises:
        KernelError: If the variable names no instruction set.
    """
    try:
        return int(native().isa_default())
    except RuntimeError as error:
        raise KernelError(str(error)) from error


def isa_number(name: str | None) -> int:
    """The number of a named instruction set that is built and supported; None gives the default.

    Raises:
        KernelError: If there is no such instruction set here.
    """
    if name is None:
        return default_isa()
    here = info()
    if name not in here.supported:
        raise KernelError(f"Instruction set '{name}' does not run here. Available: {', '.join(here.supported)}.")
    module = native()
    return next(isa for isa in range(module.ISA_COUNT) if module.isa_name(isa) == name)


def set_threads(threads: int) -> None:
    """Use this many threads from now on, the calling one included.

    Raises:
        KernelError: If the number is not positive.
    """
    if threads < 1:
        raise KernelError(f"threads must be at least 1, but got {threads}.")
    native().set_threads(threads)


def info() -> KernelInfo:
    """What was built, what the machine supports, what is used; says so when the native module is missing."""
    module, reason = _load()
    if module is None:
        return KernelInfo(False, (), (), "", 0, "", "", reason)
    built = tuple(isa for isa in range(module.ISA_COUNT) if module.isa_built(isa))
    return KernelInfo(
        available=True,
        built=tuple(module.isa_name(isa) for isa in built),
        supported=tuple(module.isa_name(isa) for isa in built if module.isa_supported(isa)),
        used=module.isa_name(default_isa()),
        threads=module.threads(),
        version=module.version(),
        compiler=module.compiler(),
        reason="",
    )
