"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evoquant.config import DataSpec, Experiment, ImageSet, ModelSpec

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="Run folder that 'evoquant search' has written.", show_default=False)]
Architecture = Annotated[
    str | None,
    typer.Option("--architecture", help="Which one of the experiment's, if it has several.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class EffortName(StrEnum):
    """Budgets of a search."""

    QUICK = "quick"
    DEFAULT = "default"
    EXTENSIVE = "extensive"


Effort = Annotated[EffortName, typer.Option("--effort", help="Budget of the search.")]


def unweighted(model: str) -> Experiment:
    """An experiment that only names a model, for commands that look at its structure."""
    none = ImageSet(images="embedded:test")
    return Experiment(
        schema_version=1,
        name="structure",
        model=ModelSpec(name=model),
        data=DataSpec(calibration=none, selection=none, test=none),
    )
