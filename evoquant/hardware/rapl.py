"""Energy that the processor itself counts, where the machine shows it (RAPL through ``/sys/class/powercap``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evoquant.errors import HardwareError

POWERCAP = Path("/sys/class/powercap")
_MJ_PER_UJ = 1e-3


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter of a processor package.

    Attributes:
        name: ``package-0``, ...
        path: Folder of its files.
    """

    name: str
    path: Path

    def read_uj(self) -> int:
        """The counter in microjoules; it starts again at 0 after ``range_uj``."""
        return int((self.path / "energy_uj").read_text())

    def range_uj(self) -> int:
        """The largest value of the counter."""
        return int((self.path / "max_energy_range_uj").read_text())


def domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """The packages whose counters can be read; none on most virtual machines and without the rights to read them."""
    found: list[Domain] = []
    for path in sorted(root.glob("intel-rapl:[0-9]")):
        try:
            domain = Domain((path / "name").read_text().strip(), path)
            domain.read_uj()
        except OSError:
            continue
        found.append(domain)
    return tuple(found)


def required_domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """The packages whose counters can be read.

    Raises:
        HardwareError: If there are none.
    """
    found = domains(root)
    if not found:
        raise HardwareError(
            f"This machine exposes no readable energy counter under {root}, so energy cannot be measured here. "
            "Use the estimate of a device file, or a machine with RAPL and the right to read it."
        )
    return found


def measure_mj(work: Callable[[], object], *, repetitions: int, root: Path = POWERCAP) -> float:
    """Energy of one call of ``work``, all packages of the machine together, in millijoules.

    Everything that runs at the same time is counted too, so measure on an idle machine and long enough (the counters
    advance about every millisecond).

    Args:
        work: What to measure.
        repetitions: How often to call it.
        root: Folder of the counters.

    Raises:
        HardwareError: If the machine shows no counter that can be read.
    """
    counters = required_domains(root)
    before = [counter.read_uj() for counter in counters]
    for _ in range(repetitions):
        work()
    after = [counter.read_uj() for counter in counters]
    used = sum(
        (end - start) % (counter.range_uj() + 1) for counter, start, end in zip(counters, before, after, strict=True)
    )
    return used * _MJ_PER_UJ / repetitions
