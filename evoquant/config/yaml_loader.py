"""Strict YAML: the YAML 1.2 core schema, no duplicate keys, a line for every value, environment variables expanded.

PyYAML reads YAML 1.1, where ``no`` is a boolean, ``1e-3`` a string and ``12:30`` a number in base sixty. Here plain
scalars resolve by the tables of YAML 1.2.2, section 10.3.2, and a second value for one key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from evoquant.errors import ConfigurationError

KeyPath: TypeAlias = tuple[str | int, ...]
Plain: TypeAlias = dict[Any, Any] | list[Any] | str | int | float | None

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))

_CORE_SCHEMA: tuple[tuple[str, re.Pattern[str], list[str] | None], ...] = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (_FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
    (_FLOAT, re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.")),
)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Composer(yaml.BaseLoader):
    """PyYAML's reader, scanner, parser and composer with the implicit types of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either version of YAML would read as something else."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (the signature is PyYAML's)
        """Write equal values in full each time."""
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    _Composer.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


@dataclass(frozen=True)
class Located:
    """What a YAML file says, and on which line it says it.

    Attributes:
        data: Plain dicts, lists and scalars.
        path: The file, as it was named; None for text without a file.
        lines: Line (from 1) of every key path; that of a mapping entry is the line of its key.
    """

    data: Any
    path: Path | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, key_path: KeyPath) -> int:
        """Line of this key, or of the nearest one around it that is in the file."""
        while key_path and key_path not in self.lines:
            key_path = key_path[:-1]
        return self.lines.get(key_path, 1)

    def where(self, key_path: KeyPath) -> str:
        """``file:line`` of this key, or of the nearest one around it that is in the file."""
        return f"{self.path or '<text>'}:{self.line(key_path)}"


def load_yaml(path: str | Path) -> Located:
    """Read one YAML document from a file.

    Raises:
        ConfigurationError: If the file cannot be read, is not YAML, repeats a key, uses a tag outside the core schema
            or names an environment variable that is not set. All problems of one kind are reported at once.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: No such file (current folder: {Path.cwd()}).") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: Cannot be read: {error}") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path | None = None) -> Located:
    """Read one YAML document from text; ``path`` names it in messages.

    Raises:
        ConfigurationError: See ``load_yaml``.
    """
    try:
        node = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        told = ", ".join(part for part in (error.context, error.problem) if part)
        hint = ' Inside { } and [ ], write "${NAME}" in quotes.' if "${" in text.split("\n")[line - 1] else ""
        raise ConfigurationError(f"{path or '<text>'}:{line}: Not valid YAML: {told}.{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path or '<text>'}:1: Not valid YAML: {error}") from error
    if node is None:
        return Located(None, path)
    builder = _Builder(path)
    data = builder.build(node, ())
    if builder.problems:
        raise ConfigurationError(builder.problems)
    return Located(data, path, builder.lines)


def dump_yaml(data: object) -> str:
    """Write plain values as YAML, keys in their order, such that ``parse_yaml`` reads the same values back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Builder:
    """Turns a composed tree into plain values, noting lines and problems on the way."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self._open: set[int] = set()

    def build(self, node: yaml.Node, key_path: KeyPath) -> Plain:
        self.lines.setdefault(key_path, node.start_mark.line + 1)
        if id(node) in self._open:
            self._refuse(node, key_path, "An alias cannot contain itself.")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key_path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return dict(self._entries(node, key_path))
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self.build(item, (*key_path, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))
        self._refuse(node, key_path, f"The tag '{node.tag}' is not part of the YAML core schema.")
        return None

    def _entries(self, node: yaml.MappingNode, key_path: KeyPath) -> Iterator[tuple[str | int, Plain]]:
        first: dict[str | int, int] = {}
        for key_node, value_node in node.value:
            is_scalar = isinstance(key_node, yaml.ScalarNode)
            key = self._scalar(key_node, key_path, expand=False) if is_scalar else None
            if isinstance(key, bool) or not isinstance(key, str | int):
                found = f"'{key_node.value}'" if is_scalar else f"a {key_node.id}"
                self._refuse(key_node, key_path, f"A key must be text or an integer, but got {found}.")
                continue
            line = key_node.start_mark.line + 1
            if key in first:
                self._refuse(key_node, (*key_path, key), f"This key already has a value on line {first[key]}.")
                continue
            first[key] = line
            self.lines[(*key_path, key)] = line
            yield key, self.build(value_node, (*key_path, key))

    def _scalar(self, node: yaml.ScalarNode, key_path: KeyPath, *, expand: bool = True) -> str | int | float | None:
        text: str = node.value
        try:
            if node.tag == _STR:
                return self._expand(node, key_path) if expand else text
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if node.tag == _FLOAT:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            self._refuse(node, key_path, f"'{text}' is not a value of type '{node.tag.rsplit(':', 1)[-1]}'.")
            return None
        self._refuse(node, key_path, f"The tag '{node.tag}' is not part of the YAML core schema.")
        return None

    def _expand(self, node: yaml.ScalarNode, key_path: KeyPath) -> str:
        """Replace each ``${NAME}``; a relative path at the start of a string counts from the current folder."""

        def value_of(match: re.Match[str]) -> str:
            name = match.group(1)
            value = os.environ.get(name)
            if not value:
                hint = f"Set it first, for example: export {name}=/path/to/it"
                self._refuse(node, key_path, f"The environment variable {name} is not set. {hint}")
                return match.group(0)
            is_path = match.start() == 0 and ("/" in value or node.value[match.end() : match.end() + 1] == "/")
            return str(Path(value).expanduser().absolute()) if is_path else value

        return _VARIABLE.sub(value_of, node.value)

    def _refuse(self, node: yaml.Node, key_path: KeyPath, told: str) -> None:
        name = ".".join(map(str, key_path))
        self.problems.append(f"{self.path or '<text>'}:{node.start_mark.line + 1}: {name + ': ' if name else ''}{told}")
