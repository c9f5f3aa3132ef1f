"""What the times of a kernel depend on: processor, instruction set, threads, versions."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

from evoquant.kernels.native import info, native

RELEVANT_FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "amx_tile", "amx_int8",
    "asimd", "asimddp", "i8mm",
)  # fmt: skip


def fingerprint(*, threads: int | None = None, isa: str | None = None) -> dict[str, Any]:
    """What a table of times is valid for.

    Args:
        threads: Threads that the table was timed with; None takes the present ones.
        isa: Instruction set of the table; None takes the one in use.

    Returns:
        ``cpu``, ``flags`` (those that matter here), ``isa``, ``threads``, and of the native module ``version``,
        ``compiler`` and ``build`` (a hash of its file); plain JSON values.

    Raises:
        KernelError: If the native module is missing.
    """
    module = native()
    here = info()
    cpu, flags = _processor()
    return {
        "cpu": cpu,
        "flags": [flag for flag in RELEVANT_FLAGS if flag in flags],
        "isa": isa or here.used,
        "threads": threads or module.threads(),
        "version": here.version,
        "compiler": here.compiler,
        "build": _build(str(module.__file__)),
    }


@cache
def _build(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _processor() -> tuple[str, frozenset[str]]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), frozenset()
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    identity = [fields.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    name = identity[0] or platform.machine()
    details = "/".join(part for part in identity[1:] if part)
    flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    return f"{name} ({details})" if details else name, flags
