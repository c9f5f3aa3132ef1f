"""Seeds from the front of an earlier run: of the same model by name, of another one by role and depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evoquant.config import load_experiment
from evoquant.errors import ConfigurationError
from evoquant.evaluate import captured_model
from evoquant.run.front_file import read_front
from evoquant.space import Plan
from evoquant.types import LayerQuantConfig, ModelGraph, Op


def read_earlier(run: Path) -> None:
    """Refuse a folder that has no front to start from.

    Raises:
        ConfigurationError: If there is none, or it is empty.
    """
    if not read_front(run).front:
        raise ConfigurationError(f"search.warm_start: the front in {run} is empty; name another run, or leave it out.")


def earlier_plans(run: Path, graph: ModelGraph, most: int) -> list[Plan]:
    """The members of an earlier front, as plans of this model.

    Args:
        run: The folder of the run.
        graph: This model.
        most: How many plans; of a longer front, evenly spaced along it.

    Raises:
        ConfigurationError: If the folder has no front, or, for another model, no configuration.
    """
    points = read_front(run).front
    chosen = np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int).tolist()
    older: dict[str | None, ModelGraph] = {}
    plans: list[Plan] = []
    for point in (points[index] for index in chosen):
        if set(point.plan) == set(graph.op):
            plans.append(point.plan)
            continue
        if not older:
            architectures = load_experiment(run / "config.yaml").by_architecture()
            older = {name: captured_model(alone).graph for name, alone in architectures.items()}
        plans.append(transferred(point.plan, older[point.architecture], graph))
    return plans


def transferred(
    plan: Mapping[str, LayerQuantConfig], older: ModelGraph, graph: ModelGraph
) -> dict[str, LayerQuantConfig]:
    """A plan for another model: each operation gets the precision of the one with its role at about its depth.

    Where the older model has nothing of that role, an operation of the same kind stands for it, else any.

    Args:
        plan: Precisions of all operations of ``older``.
        older: The model that the plan is for.
        graph: The model that gets one.
    """
    known_depths = _depths(older)
    depths = _depths(graph)

    def like(op: Op) -> LayerQuantConfig:
        alike = [known for known in older.ops if known.role is op.role]
        alike = alike or [known for known in older.ops if known.kind is op.kind] or list(older.ops)
        nearest = min(alike, key=lambda known: abs(known_depths[known.name] - depths[op.name]))
        return plan[nearest.name]

    return {op.name: like(op) for op in graph.ops}


def _depths(graph: ModelGraph) -> dict[str, float]:
    """Each operation's place in the order of computation, from 0 to 1."""
    return {op.name: index / max(len(graph.ops) - 1, 1) for index, op in enumerate(graph.ops)}
