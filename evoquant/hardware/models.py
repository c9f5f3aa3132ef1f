"""The latency table of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from evoquant import kernels
from evoquant.hardware.filling import Timed, fill, load_or_start, table_path
from evoquant.hardware.table import Case, LatencyTable


def machine_table(
    cases: Iterable[Case],
    *,
    threads: int = 1,
    isa: str | None = None,
    folder: Path | None = None,
    most_measured: int | None = None,
    measure: Callable[[Sequence[Case]], Iterable[Timed]] | None = None,
) -> LatencyTable:
    """The latency table of this machine with an entry for each case: what is known is reused, the rest measured.

    Kernels that are executed alike are timed once. Nothing else should run meanwhile. The table is saved before it is
    returned.

    Args:
        cases: What is wanted.
        threads: Threads of every kernel.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.
        folder: Where tables are kept; None for the cache folder.
        most_measured: See ``fill``.
        measure: Times cases; None for the native kernels.

    Raises:
        KernelError: If the native kernels are missing, or the machine has not that instruction set.
        HardwareError: If the kept table cannot be read or written.
    """
    machine = kernels.fingerprint(threads=threads, isa=isa)
    path = table_path(machine, threads, folder)
    known = load_or_start(path, machine, threads)

    def timed(missing: Sequence[Case]) -> Iterable[Timed]:
        wanted = [kernels.KernelCase(case.op, case.shape, case.precision) for case in missing]
        executed = [kernels.executed_as(case, isa or kernels.info().used) for case in wanted]
        distinct = list(dict.fromkeys(executed))
        times = dict(zip(distinct, kernels.measure(distinct, threads=threads, isa=isa), strict=True))
        return [replace(times[stands_for], case=case) for case, stands_for in zip(wanted, executed, strict=True)]

    table = fill(known, cases, measure or timed, most_measured=most_measured)
    if table != known:
        table.save(path)
    return table
