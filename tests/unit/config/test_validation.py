from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from evoquant.config import parse_yaml, validate
from evoquant.errors import ConfigurationError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    population_size: int = Field(8, ge=2)
    rate: float = 0.5
    folder: Path | None = None
    pair: tuple[int, int] = (1, 2)

    @field_validator("rate")
    @classmethod
    def _not_a_third(cls, value: float) -> float:
        if value == 0.25:
            raise ValueError("rate must not be 0.25")
        return value


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    search: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    either: Inner | str | None = None


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError, match=r"x\.yaml:\d+: ") as info:
        validate(Outer, parse_yaml(text, Path("x.yaml")))
    return info.value.problems


def test_valid_data_becomes_the_model() -> None:
    outer = validate(Outer, parse_yaml("name: a\nsearch: {folder: b/c, pair: [3, 4], rate: 1}"))
    assert outer.search == Inner(folder=Path("b/c"), pair=(3, 4), rate=1.0)


def test_all_problems_are_reported_in_the_order_of_lines() -> None:
    text = "search:\n  popsize: 3\n  rate: fast\n  population_size: 1\nwhat: 1\nname: 3"
    assert problems(text) == (
        "x.yaml:2: search.popsize: Extra inputs are not permitted, but got 3. Did you mean 'population_size'?",
        "x.yaml:3: search.rate: Input should be a valid number, but got 'fast'.",
        "x.yaml:4: search.population_size: Input should be greater than or equal to 2, but got 1.",
        "x.yaml:5: what: Extra inputs are not permitted, but got 1. Available: name, search, many, named, either.",
        "x.yaml:6: name: Input should be a valid string, but got 3.",
    )


def test_missing_key_names_the_place_around_it() -> None:
    assert problems("search: {}") == ("x.yaml:1: name: Field required.",)


@pytest.mark.parametrize("value", ["true", "'8'", "8.5"])
def test_integers_are_integers(value: str) -> None:
    (problem,) = problems(f"name: a\nsearch:\n  population_size: {value}")
    assert problem.startswith("x.yaml:3: search.population_size: Input should be a valid integer")


def test_problems_inside_lists_mappings_and_unions() -> None:
    text = "name: a\nmany:\n  - {}\n  - rates: 1\nnamed:\n  b:\n    rats: 1\neither:\n  fold: x"
    assert [problem.split(", but")[0] for problem in problems(text)] == [
        "x.yaml:4: many.1.rates: Extra inputs are not permitted",
        "x.yaml:7: named.b.rats: Extra inputs are not permitted",
        "x.yaml:8: either: Input should be a valid string",
        "x.yaml:9: either.fold: Extra inputs are not permitted",
    ]
    assert "Did you mean 'rate'?" in problems(text)[0]
    assert "Did you mean 'rate'?" in problems(text)[1]
    assert "Did you mean 'folder'?" in problems(text)[3]


def test_own_messages_are_kept() -> None:
    assert problems("name: a\nsearch: {rate: 0.25}") == ("x.yaml:2: search.rate: rate must not be 0.25.",)


@pytest.mark.parametrize(
    ("text", "found"), [("", "an empty document"), ("- 1", r"\[1\]"), ("just text", "'just text'")]
)
def test_a_document_must_be_a_mapping(text: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected a mapping with the keys name, .* but got {found}"):
        validate(Outer, parse_yaml(text))


def test_plain_data_has_no_lines() -> None:
    with pytest.raises(ConfigurationError, match=r"^search\.rat: Extra inputs .* Did you mean 'rate'\?$"):
        validate(Outer, {"name": "a", "search": {"rat": 1}})


def test_long_values_are_cut() -> None:
    (problem,) = problems("name: a\nsearch: {rate: " + "x" * 200 + "}")
    assert len(problem) < 160
