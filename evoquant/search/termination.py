"""When a search ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evoquant.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Termination:
    """Limits of a search; the first one reached ends it, None sets no limit.

    Attributes:
        evaluations: Evaluated candidates.
        minutes: Wall time.
        generations: Batches.
        patience: Batches in a row without a hypervolume that is better by ``min_gain``.
        min_gain: Relative gain of hypervolume that counts as progress.
    """

    evaluations: int | None = None
    minutes: float | None = None
    generations: int | None = None
    patience: int | None = None
    min_gain: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("evaluations", "minutes", "generations", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(f"{name} must be positive, but got {value}.")
        if self.min_gain < 0.0:
            raise ConfigurationError(f"min_gain must not be negative, but got {self.min_gain}.")

    def reason(self, *, evaluations: int, seconds: float, hypervolumes: Sequence[float]) -> str | None:
        """Why the search ends now, or None if it goes on.

        Args:
            evaluations: Evaluated candidates so far.
            seconds: Wall time so far, that of earlier sessions of the run included.
            hypervolumes: One value after each batch so far.
        """
        if self.evaluations is not None and evaluations >= self.evaluations:
            return f"{evaluations} of {self.evaluations} evaluations done"
        if self.minutes is not None and seconds >= 60.0 * self.minutes:
            return f"{self.minutes:g} minutes are over"
        if self.generations is not None and len(hypervolumes) >= self.generations:
            return f"{len(hypervolumes)} of {self.generations} generations done"
        if self.patience is not None and self._stalled(hypervolumes) >= self.patience:
            return f"no gain of hypervolume in {self.patience} generations"
        return None

    def _stalled(self, hypervolumes: Sequence[float]) -> int:
        """Batches since the last one that gained enough."""
        best, last_gain = 0.0, 0
        for index, value in enumerate(hypervolumes):
            if index == 0 or value > best * (1.0 + self.min_gain):
                best, last_gain = value, index
        return max(0, len(hypervolumes) - 1 - last_gain)
