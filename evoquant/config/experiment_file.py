"""Reading and writing experiment files, their identity, and the three efforts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from evoquant.config.experiment import Experiment
from evoquant.config.validation import validate
from evoquant.config.yaml_loader import dump_yaml, load_yaml

Effort = Literal["quick", "default", "extensive"]

QUICK_EVALUATIONS = 120
QUICK_POPULATION = 20
QUICK_SELECTION_IMAGES = 128
QUICK_TEST_POINTS = 6
EXTENSIVE_FACTOR = 4

_WITHOUT_EFFECT = (
    ("name",),
    ("output",),
    ("evaluation", "parallel_evaluations"),
    ("evaluation", "executor"),
    ("evaluation", "ray_address"),
)


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file; relative paths in it count from its folder.

    Raises:
        ConfigurationError: With one line for each problem, with file, line and key path.
    """
    return validate(Experiment, load_yaml(path), context={"folder": Path(path).absolute().parent})


def experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain JSON values of all fields, defaults filled in, paths absolute; ``architectures`` only if there are any."""
    return experiment.model_dump(mode="json", exclude=None if experiment.architectures else {"architectures"})


def experiment_to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML; ``load_experiment`` reads the same experiment back."""
    return dump_yaml(experiment_to_dict(experiment))


def experiment_hash(experiment: Experiment) -> str:
    """SHA-256, in hex, of everything that the result depends on.

    The name, the output folder and the way evaluations are spread over workers have no part in it.
    """
    text = json.dumps(_identity(experiment), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def experiment_differences(before: Experiment, after: Experiment) -> list[str]:
    """One line for each setting that makes the two different runs: ``search.seed: 0 before, 1 now``."""
    old, new = dict(_leaves(_identity(before))), dict(_leaves(_identity(after)))
    return [
        f"{'.'.join(key)}: {old.get(key)!r} before, {new.get(key)!r} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def with_effort(experiment: Experiment, effort: Effort) -> Experiment:
    """The experiment with a smaller or larger budget.

    ``quick`` is made to end within 10 minutes for the embedded default and within 30 minutes for ImageNet models of
    about 1 GMAC, on two cores: at most 120 evaluations, a population of at most 20, at most 128 selection images (a set
    without ``count`` is used whole), and test images for the knee and five further points only. It never enlarges
    anything. ``default`` is the experiment as written. ``extensive`` has four times the evaluations with twice the
    population.
    """
    search, data, evaluation = experiment.search, experiment.data, experiment.evaluation
    if effort == "quick":
        points = QUICK_TEST_POINTS if evaluation.test_points is None else evaluation.test_points
        search = search.model_copy(
            update={
                "evaluations": min(search.evaluations, QUICK_EVALUATIONS),
                "population_size": min(search.population_size, QUICK_POPULATION),
            }
        )
        if data.selection.count is not None:
            count = min(data.selection.count, QUICK_SELECTION_IMAGES)
            data = data.model_copy(update={"selection": data.selection.model_copy(update={"count": count})})
        evaluation = evaluation.model_copy(update={"test_points": min(points, QUICK_TEST_POINTS)})
    elif effort == "extensive":
        search = search.model_copy(
            update={
                "evaluations": search.evaluations * EXTENSIVE_FACTOR,
                "population_size": search.population_size * 2,
            }
        )
    return experiment.model_copy(update={"search": search, "data": data, "evaluation": evaluation})


def _identity(experiment: Experiment) -> dict[str, Any]:
    data = experiment_to_dict(experiment)
    for *around, last in _WITHOUT_EFFECT:
        section = data
        for key in around:
            section = section[key]
        del section[last]
    return data


def _leaves(data: Any, key_path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _leaves(value, (*key_path, str(key)))
    else:
        yield key_path, data
