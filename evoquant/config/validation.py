"""From plain data to a validated pydantic model: every problem at once, each with file, line, key path and a hint."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evoquant.config.yaml_loader import KeyPath, Located, load_yaml
from evoquant.errors import ConfigurationError

ModelT = TypeVar("ModelT", bound=BaseModel)

_SHOWN_VALUE_LENGTH = 60
_QUOTED = re.compile(r"'([^']*)'")


def validate(
    model_class: type[ModelT],
    source: str | Path | Located | Mapping[str, Any],
    *,
    context: Mapping[str, Any] | None = None,
) -> ModelT:
    """Read ``source`` as a ``model_class``, strictly: a quoted number is not a number, ``true`` is not 1.

    Args:
        model_class: What the data must be.
        source: Path of a YAML file, a loaded one, or plain data (then messages carry no file and line).
        context: Handed to the validators of the model, such as the ``folder`` that relative paths count from.

    Raises:
        ConfigurationError: With one line for each problem:
            ``file:line: key.path: message, but got value. Did you mean 'x'?``
    """
    if isinstance(source, str | Path):
        source = load_yaml(source)
    data = source.data if isinstance(source, Located) else source
    if not isinstance(data, Mapping):
        found = "an empty document" if data is None else _shown(data)
        place = f"{source.where(())}: " if isinstance(source, Located) else ""
        expected = ", ".join(_field_names(model_class))
        raise ConfigurationError(f"{place}Expected a mapping with the keys {expected}, but got {found}.")
    try:
        # The JSON mode is the one in which strict validation still takes text for paths and lists for tuples.
        return model_class.model_validate_json(json.dumps(data, default=str), strict=True, context=context)
    except ValidationError as error:
        located = source if isinstance(source, Located) else None
        problems = {_problem(model_class, data, detail, located) for detail in error.errors(include_url=False)}
        raise ConfigurationError(text for _, text in sorted(problems)) from error


def _problem(
    model_class: type[BaseModel], data: object, detail: ErrorDetails, located: Located | None
) -> tuple[int, str]:
    """The line of one problem (0 without a file) and its message."""
    key_path, owner = _follow(model_class, data, detail)
    told = detail["msg"].removeprefix("Value error, ").rstrip(".")
    hint = ""
    if detail["type"] not in ("missing", "value_error"):
        told = f"{told}, but got {_shown(detail['input'])}"
    if detail["type"] == "extra_forbidden" and owner is not None:
        names = _field_names(owner)
        nearest = difflib.get_close_matches(str(detail["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else f" Available: {', '.join(names)}."
    elif detail["type"] == "literal_error" and isinstance(detail["input"], str):
        nearest = difflib.get_close_matches(detail["input"], _QUOTED.findall(detail["msg"]), n=1, cutoff=0.5)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    parts = [".".join(map(str, key_path)), f"{told}.{hint}"]
    if located is None:
        return 0, ": ".join(filter(None, parts))
    return located.line(key_path), ": ".join(filter(None, [located.where(key_path), *parts]))


def _follow(model_class: type[BaseModel], data: object, detail: ErrorDetails) -> tuple[KeyPath, type[BaseModel] | None]:
    """The keys of the error's location that exist in the data, and the model around the last of them.

    pydantic puts the names of union members between the keys; a missing key is the only one that need not exist.
    """
    loc = detail["loc"]
    path: list[str | int] = []
    owner: type[BaseModel] | None = None
    annotation: object = model_class
    here: Any = data
    for position, key in enumerate(loc):
        is_index = isinstance(here, list | tuple) and isinstance(key, int) and 0 <= key < len(here)
        if is_index or (isinstance(here, Mapping) and key in here):
            here = here[key]
        elif not (detail["type"] == "missing" and position == len(loc) - 1):
            continue
        path.append(key)
        owner, annotation = _step(annotation, key, loc)
    return tuple(path), owner


def _step(annotation: object, key: str | int, loc: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, object]:
    """The model that has ``key`` as a field, if it is one, and the annotation of the value behind the key."""
    members = list(_members(annotation))
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    models.sort(key=lambda model: model.__name__ not in loc)
    if models and isinstance(key, str):
        fields = {info.alias or name: info for name, info in models[0].model_fields.items()}
        return models[0], fields[key].annotation if key in fields else None
    for member in members:
        arguments = get_args(member)
        if arguments:
            return None, arguments[0] if isinstance(key, int) else arguments[-1]
    return None, None


def _members(annotation: object) -> Iterator[object]:
    """The alternatives of a union, without ``Annotated``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    else:
        yield annotation


def _field_names(model_class: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model_class.model_fields.items()]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE_LENGTH else f"{text[: _SHOWN_VALUE_LENGTH - 3]}..."
