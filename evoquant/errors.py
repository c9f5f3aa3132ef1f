"""Every error that evoquant raises on purpose.

EvoQuantError
├── ConfigurationError (ValueError)          a file or an argument is wrong; carries all problems found
│   └── UnknownNameError (KeyError)          a name that is not registered, with the nearest ones
├── PrecisionError (ValueError)              a combination of scheme, bits and granularity that cannot work
├── DataError (ValueError)                   images or labels that are missing, unreadable or overlapping
├── GraphError (ValueError)                  a model that does not export, or an operation that has no role
├── ModelError (ValueError)                  weights that do not fit, or outputs that are not finite
├── KernelError (RuntimeError)               a native kernel that is missing or was called with wrong operands
├── HardwareError (ValueError)               a device that cannot execute what is asked, or has no model
├── RunError (RuntimeError)                  a run folder of another experiment, a journal that cannot be written
└── InfeasibleError (RuntimeError)           no genome fulfils the constraints
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvoQuantError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(EvoQuantError, ValueError):
    """One or more problems in a configuration; the message has one line for each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(ConfigurationError, KeyError):
    """A name that is not registered."""

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        super().__init__(f"Unknown {kind} '{name}'.{did_you_mean(name, available)}")

    __str__ = Exception.__str__


class PrecisionError(EvoQuantError, ValueError):
    """A combination of scheme, bits, granularity and calibration that cannot work."""


class DataError(EvoQuantError, ValueError):
    """Images or labels that are missing, unreadable or overlapping."""


class GraphError(EvoQuantError, ValueError):
    """A model that cannot be captured, or an operation that cannot be classified."""


class ModelError(EvoQuantError, ValueError):
    """Weights that do not fit the model, or a model whose outputs are not finite."""


class KernelError(EvoQuantError, RuntimeError):
    """A native kernel that is missing, or operands that it does not take."""


class HardwareError(EvoQuantError, ValueError):
    """A device that has no model, or that cannot execute what is asked of it."""


class RunError(EvoQuantError, RuntimeError):
    """A run folder that belongs to another experiment, or that cannot be written."""


class InfeasibleError(EvoQuantError, RuntimeError):
    """No genome fulfils the constraints."""


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """The end of an error message: the nearest of the available names, then all of them."""
    names = sorted(available)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"{hint} Available: {', '.join(names) or 'none'}."
