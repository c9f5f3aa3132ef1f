"""A run as it goes, drawn on the standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evoquant.cli.output import STATUS
from evoquant.run import events


class SearchProgress:
    """Draws the events of a run: a bar where the error stream is a terminal, a line for each stage elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=STATUS,
            disable=not STATUS.is_terminal,
        )
        self._task = self._bar.add_task("search", total=None, state="", visible=False)
        self._failures = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        """Draw one event."""
        match event:
            case events.StageStarted(stage, detail):
                STATUS.print(f"{stage}: {detail}" if detail else stage, markup=False)
            case events.Promised():
                STATUS.print(
                    f"promise: {event.evaluations} evaluations of {event.seconds_per_evaluation:.2f} s, about "
                    f"{event.seconds / 60:.1f} min, {event.disk_mb:.0f} MB on disk, {event.memory_mb:.0f} MB of memory",
                    markup=False,
                )
            case events.SensitivityProbed():
                STATUS.print(
                    f"sensitivity: {event.probes} probes of {event.images} images, at {event.cost_ratio:.2f} of their "
                    f"cost from the input{', from the journal' if event.from_journal else ''}",
                    markup=False,
                )
            case events.SearchStarted():
                self._begin(event)
            case events.CandidateEvaluated():
                self._bar.update(self._task, completed=event.number)
                if event.reason is not None:
                    self._failures += 1
                    STATUS.print(f"candidate {event.phenotype[:8]} failed: {event.reason}", markup=False)
            case events.GenerationFinished():
                self._generation(event)
            case events.Tested(identifier, top1, images):
                STATUS.print(f"test: {identifier} top-1 {top1:.2f} % on {images} images", markup=False)
            case events.Noticed(message):
                STATUS.print(message, markup=False)
            case events.RunFinished(status, seconds):
                STATUS.print(f"{status} after {seconds:.0f} s", markup=False)

    def _begin(self, event: events.SearchStarted) -> None:
        resumed = f", {event.resumed_evaluations} evaluations in the journal" if event.resumed_evaluations else ""
        STATUS.print(
            f"search: {event.groups} groups, 10^{event.space_size_log10:.0f} plans, "
            f"{event.evaluations or 'no limit of'} evaluations{resumed}",
            markup=False,
        )
        self._bar.update(self._task, total=event.evaluations, visible=True)

    def _generation(self, event: events.GenerationFinished) -> None:
        eta = "" if event.eta_seconds is None else f", about {event.eta_seconds:.0f} s left"
        trust = "" if event.rank_correlation is None else f", rank correlation {event.rank_correlation:.2f}"
        state = f"front {event.front_size}, hypervolume {event.hypervolume:.4f}{trust}{eta}"
        self._bar.update(self._task, state=state)
        if not STATUS.is_terminal:
            where = "".join(f"{name}, " for name in (event.device, event.architecture) if name)
            STATUS.print(
                f"{where}generation {event.generation}: {event.evaluations} evaluations, {state}", markup=False
            )
