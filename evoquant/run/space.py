"""The search space of an experiment on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evoquant.config import Experiment, load_yaml, validate
from evoquant.errors import UnknownNameError
from evoquant.hardware import Device, legaliser
from evoquant.resources import folder
from evoquant.space import SearchSpace, SpaceSpec
from evoquant.types import ModelGraph


def build_space(experiment: Experiment, graph: ModelGraph, device: Device | None) -> SearchSpace:
    """The search space of an experiment on a device, or without regard to any.

    Raises:
        UnknownNameError: If no shipped space has that name.
        ConfigurationError: If the space is malformed or leaves a group without a legal choice.
    """
    legal = None if device is None else legaliser(device)
    return SearchSpace.build(read_space(experiment.space), graph, legal=legal)


def read_space(source: str | Mapping[str, Any]) -> SpaceSpec:
    """A search space by the name of a shipped file, by path, or as a mapping."""
    if not isinstance(source, str):
        return validate(SpaceSpec, source)
    if "/" in source or source.endswith((".yaml", ".yml")):
        return validate(SpaceSpec, load_yaml(source))
    shipped = {path.stem: path for path in folder("search_spaces").glob("*.yaml")}
    if source not in shipped:
        raise UnknownNameError("search space", source, shipped)
    return validate(SpaceSpec, load_yaml(shipped[source]))
