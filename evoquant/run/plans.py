"""Finding the plan that a user names: a preset, a file, or a point of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evoquant.config import load_yaml
from evoquant.errors import ConfigurationError
from evoquant.run.front_file import read_front
from evoquant.space import PRESET_NAMES, canonical, preset_plan
from evoquant.types import LayerQuantConfig, ModelGraph


def architecture_of(source: str) -> str | None:
    """The architecture that a plan is for: that of a point of a run, or what a plan file says; None: they say none.

    Raises:
        ConfigurationError: If there is no such point.
    """
    folder, mark, point = source.partition("#")
    if mark:
        return read_front(Path(folder)).point(point).architecture
    path = Path(source)
    data = _read(path) if path.suffix in (".json", ".yaml", ".yml") and path.is_file() else None
    return data.get("architecture") if isinstance(data, Mapping) else None


def _read(path: Path) -> object:
    return json.loads(path.read_text()) if path.suffix == ".json" else load_yaml(path).data


def read_plan(source: str, graph: ModelGraph, classes: Mapping[str, str]) -> dict[str, LayerQuantConfig]:
    """The precision of every operation.

    Args:
        source: A preset (``w8a8``), a plan file (YAML or JSON with the key ``plan`` or ``layer_configs``, or the plan
            itself), or a point of a run (``runs/quickstart#knee``).
        graph: The model that the plan is for.
        classes: For the preset ``efficientquant``.

    Raises:
        ConfigurationError: If there is no such plan.
        PrecisionError: If it does not fit the model.
    """
    if source in PRESET_NAMES:
        return preset_plan(source, graph, classes)
    folder, mark, point = source.partition("#")
    if mark:
        return complete(dict(read_front(Path(folder)).point(point).plan), graph, source)
    path = Path(source)
    if not path.is_file():
        raise ConfigurationError(
            f"'{source}' is no plan: expected one of {', '.join(PRESET_NAMES)}, a plan file, or RUN_DIR#POINT."
        )
    data = _read(path)
    found: Any = data
    for key in ("plan", "layer_configs"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            found = data[key]
    if not isinstance(found, Mapping) or not all(isinstance(entry, Mapping) for entry in found.values()):
        raise ConfigurationError(f"{path}: expected a mapping from operation to precision, under the key 'plan'.")
    return complete({name: LayerQuantConfig.from_dict(dict(entry)) for name, entry in found.items()}, graph, source)


def complete(plan: dict[str, LayerQuantConfig], graph: ModelGraph, source: str) -> dict[str, LayerQuantConfig]:
    """The plan in the order of the graph, in canonical form.

    Raises:
        ConfigurationError: If an operation is missing or unknown.
    """
    missing = [op.name for op in graph.ops if op.name not in plan]
    unknown = [name for name in plan if name not in graph.op]
    if missing or unknown:
        raise ConfigurationError(
            f"The plan '{source}' does not fit {graph.model}: it has no entry for {', '.join(missing[:3]) or 'nothing'}"
            f"{' ...' if len(missing) > 3 else ''} and unknown ones {', '.join(unknown[:3]) or 'none'}"
            f"{' ...' if len(unknown) > 3 else ''}."
        )
    return {op.name: canonical(op, plan[op.name]) for op in graph.ops}
