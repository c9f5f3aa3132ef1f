"""The run: an asynchronous loop between the search and the evaluations, with a journal that survives."""

from evoquant.run.events import Event, Listener
from evoquant.run.front_file import TARGETS, read_front, read_fronts, write_front
from evoquant.run.promise import timed_promise
from evoquant.run.space import build_space, read_space
from evoquant.run.start import run_experiment

__all__ = [
    "TARGETS",
    "Event",
    "Listener",
    "build_space",
    "read_front",
    "read_fronts",
    "read_space",
    "run_experiment",
    "timed_promise",
    "write_front",
]
