"""What every command shares: results as one JSON document or as text, errors on one screen, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console

from evoquant.errors import EvoQuantError, InfeasibleError

STATUS = Console(stderr=True, highlight=False)
"""Progress and errors; results alone go to the standard output."""


class ExitCode(IntEnum):
    """What a command ends with."""

    DONE = 0
    WRONG = 2
    INFEASIBLE = 3
    INTERRUPTED = 130


def show(document: Mapping[str, Any], *, as_json: bool, text: Callable[[Console, Mapping[str, Any]], None]) -> None:
    """Print a result: one JSON document, or what ``text`` draws of it."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()
    else:
        text(Console(highlight=False), document)


@contextmanager
def errors_on_one_screen() -> Iterator[None]:
    """Turn expected errors into a message and an exit code; everything else is a defect and keeps its traceback."""
    try:
        yield
    except InfeasibleError as error:
        _complain(error)
        raise SystemExit(ExitCode.INFEASIBLE) from error
    except EvoQuantError as error:
        _complain(error)
        raise SystemExit(ExitCode.WRONG) from error
    except KeyboardInterrupt:
        STATUS.print("Interrupted. What was found is kept; the same command goes on from there.")
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _complain(error: EvoQuantError) -> None:
    lines = str(error).splitlines()
    shown = [*lines[:20], f"... and {len(lines) - 20} more lines"] if len(lines) > 20 else lines
    for line in shown:
        STATUS.print(f"error: {line}" if line is shown[0] else f"  {line}", markup=False, soft_wrap=True)
