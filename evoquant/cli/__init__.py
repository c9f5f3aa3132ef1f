"""The command line: the only place that prints."""

from evoquant.cli.main import main

__all__ = ["main"]
