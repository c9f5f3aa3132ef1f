"""The commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from evoquant.cli import bench, deploy, evaluate, inspect, profile, report, search, sensitivity
from evoquant.cli.output import errors_on_one_screen

APP = typer.Typer(
    name="evoquant",
    help="The best precision for every layer of a vision model on a device, proven.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
APP.command("search")(search.search)
APP.command("inspect")(inspect.inspect)
APP.command("sensitivity")(sensitivity.sensitivity)
APP.command("profile")(profile.profile)
APP.command("evaluate")(evaluate.evaluate)
APP.command("compare")(evaluate.compare)
APP.command("report")(report.report)
APP.command("export")(deploy.export)
APP.command("verify")(deploy.verify)
APP.add_typer(bench.APP, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the command."""
    with errors_on_one_screen():
        APP(args=None if arguments is None else list(arguments), standalone_mode=True)
    sys.exit(0)
