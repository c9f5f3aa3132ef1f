"""Plain scalars are compared with the tables of YAML 1.2.2, section 10.3.2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.config import dump_yaml, load_yaml, parse_yaml
from evoquant.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E+2", 100.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("0x1F", 31),
        ("0o17", 15),
        ("007", 7),
        ("+3", 3),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("!!str 8", "8"),
        ("!!float 8", 8.0),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(parse_yaml("key: .nan").data["key"])


def test_every_key_path_knows_its_line() -> None:
    located = parse_yaml("a: 1\nb:\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n", Path("f.yaml"))
    assert located.data == {"a": 1, "b": {"c": ["x", {"d": 2, "e": 3}]}}
    assert located.where(("b", "c")) == "f.yaml:3"
    assert located.where(("b", "c", 0)) == "f.yaml:4"
    assert located.where(("b", "c", 1, "e")) == "f.yaml:6"
    assert located.where(("b", "absent", "deeper")) == "f.yaml:2"


def test_duplicate_keys_are_all_reported(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    with pytest.raises(
        ConfigurationError, match=r"twice\.yaml:4: b\.c: This key already has a value on line 3"
    ) as info:
        load_yaml(path)
    assert len(info.value.problems) == 2
    assert "twice.yaml:5: a: This key already has a value on line 1." in info.value.problems[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"<text>:1: Not valid YAML"),
        ("a: 1\n b: 2", r"<text>:2: Not valid YAML"),
        ("a: 1\n---\nb: 2", r"Not valid YAML: .*single document"),
        ("a: !!python/object/apply:os.system [ls]", r"a: The tag .*python.* is not part of the YAML core schema"),
        ("a: !!int x", r"a: 'x' is not a value of type 'int'"),
        ("? [1, 2]\n: 3", r"<text>:1: A key must be text or an integer, but got a sequence"),
        ("a: {null: 3}", r"<text>:1: a: A key must be text or an integer, but got 'null'"),
        ("true: 3", r"A key must be text or an integer, but got 'true'"),
        ("a: &x [*x]", r"a\.0: An alias cannot contain itself"),
        ("a: \x07", r"Not valid YAML"),
        ("a: {b: ${HOME}/x}", r"<text>:1: Not valid YAML: .* write \"\$\{NAME\}\" in quotes"),
        ("a: [", r"<text>:1: Not valid YAML"),
        ("a: [\n", r"<text>:2: Not valid YAML"),
    ],
)
def test_bad_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_yaml(text)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: No such file"):
        load_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigurationError, match=r"binary\.yaml: Cannot be read"):
        load_yaml(tmp_path / "binary.yaml")
    with pytest.raises(ConfigurationError, match=r"Cannot be read"):
        load_yaml(tmp_path)


def test_an_alias_is_read_in_both_places() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_variables_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOQUANT_ASSETS", "../shared/assets")
    monkeypatch.setenv("RUN_LABEL", "blue")
    data = parse_yaml(
        "a: ${EVOQUANT_ASSETS}/images\nb: ${EVOQUANT_ASSETS}\nc: x-${RUN_LABEL}\nd: ${RUN_LABEL}\ne: $5"
    ).data
    assert data["a"] == str(tmp_path / ".." / "shared" / "assets" / "images")
    assert data["b"] == str(tmp_path / ".." / "shared" / "assets")
    assert (data["c"], data["d"], data["e"]) == ("x-blue", "blue", "$5")


def test_missing_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVOQUANT_ASSETS", raising=False)
    with pytest.raises(ConfigurationError, match=r"EVOQUANT_ASSETS is not set.*export EVOQUANT_ASSETS=") as info:
        parse_yaml("a:\n  b: ${EVOQUANT_ASSETS}/x\nc: ${EVOQUANT_ASSETS}/y", Path("e.yaml"))
    assert [problem.split(": The")[0] for problem in info.value.problems] == ["e.yaml:2: a.b", "e.yaml:3: c"]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["no", "1e-3", "0o7", "", "~", "12:30", "null", "a: b", "- x", "#", "é", "0x1", " x ", "\n"])
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$\ufeff"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcno1", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_written_is_read_back(value: object) -> None:
    assert parse_yaml(dump_yaml({"value": value})).data == {"value": value}
