from __future__ import annotations

import pytest

from evoquant.config import validate
from evoquant.errors import ConfigurationError, PrecisionError
from evoquant.resources import folder
from evoquant.space import CalibrationChoice, GranularityChoice, SchemeBits, SearchSpace, SpaceSpec
from evoquant.types import CalibrationMethod, QuantizationGranularity, QuantizationScheme

SHIPPED = sorted(folder("search_spaces").glob("*.yaml"))
MINIMAL = {"schema_version": 1, "default": {"weights": ["uniform:8"], "activations": ["uniform:8"]}}


def spec(default=None, rules=()):
    return {**MINIMAL, "default": {**MINIMAL["default"], **(default or {})}, "rules": list(rules)}


def test_the_promised_spaces_are_shipped():
    assert {path.stem for path in SHIPPED} >= {"mobile_hybrid", "int8_only", "mixed_4_8", "extreme_low_bit"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_build(path, graph):
    space = SearchSpace.build(validate(SpaceSpec, path), graph)
    assert space.size_log10 > 10
    assert all(table.phenotypes >= 1 for table in space.tables)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_round_trip(path):
    loaded = validate(SpaceSpec, path)
    assert SpaceSpec.model_validate(loaded.model_dump(mode="json")) == loaded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform:4", (QuantizationScheme.UNIFORM, 4)),
        ("log2:3", (QuantizationScheme.LOG2, 3)),
        ("power_of_two:8", (QuantizationScheme.POWER_OF_TWO, 8)),
        ("ternary", (QuantizationScheme.TERNARY, 2)),
        ("binary", (QuantizationScheme.BINARY, 1)),
        ("float", (QuantizationScheme.UNIFORM, 32)),
        ({"scheme": "uniform", "bits": 5}, (QuantizationScheme.UNIFORM, 5)),
        ({"scheme": "ternary"}, (QuantizationScheme.TERNARY, 2)),
    ],
)
def test_number_formats(text, expected):
    choice = SchemeBits.parse(text)
    assert (choice.scheme, choice.bits) == expected
    assert SchemeBits.parse(str(choice)) == choice


def test_other_choices():
    assert GranularityChoice.parse("per_group:64") == GranularityChoice(QuantizationGranularity.PER_GROUP, 64)
    assert str(GranularityChoice.parse("per_group:64")) == "per_group:64"
    assert CalibrationChoice.parse("percentile:99.9") == CalibrationChoice(CalibrationMethod.PERCENTILE, 99.9)
    assert str(CalibrationChoice.parse("percentile:99.9")) == "percentile:99.9"


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (SchemeBits.parse, "unifrom:4", "Did you mean 'uniform'"),
        (SchemeBits.parse, "uniform", "needs its bits"),
        (SchemeBits.parse, "uniform:x", "whole number"),
        (SchemeBits.parse, "ternary:3", "has 2 bits"),
        (SchemeBits.parse, "float:16", "has 32 bits"),
        (SchemeBits.parse, 8, "Expected a text"),
        (SchemeBits.parse, {"scheme": "uniform", "bit": 4}, "keys scheme and bits"),
        (GranularityChoice.parse, "per_group", "per_group:64"),
        (GranularityChoice.parse, "per_channel:8", "Only 'per_group'"),
        (GranularityChoice.parse, "per_group:0", "positive"),
        (GranularityChoice.parse, "per_row", "Unknown granularity"),
        (CalibrationChoice.parse, "mse:3", "Only 'percentile'"),
        (CalibrationChoice.parse, "percentile:101", "lie in"),
        (CalibrationChoice.parse, "percentile:high", "must be a number"),
        (CalibrationChoice.parse, "kl", "Unknown calibration"),
    ],
)
def test_bad_choices_say_why(parse, text, message):
    with pytest.raises(PrecisionError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spec({"weights": []}), "default.weights"),
        (spec({"weights": ["uniform:9"]}), "Bits of weights must be one of"),
        (spec({"weights": ["log2:5"]}), "log2 has at most 4 bits"),
        (spec({"weights": ["uniform:1"]}), "'binary'"),
        (spec({"activations": ["uniform:3"]}), "Bits of activations must be one of"),
        (spec({"activations": ["ternary"]}), "Activations cannot be ternary"),
        (spec({"weights": ["uniform:8", "uniform:8"]}), "uniform:8 is repeated"),
        (spec({"weight": ["uniform:8"]}), "Did you mean 'weights'"),
        (spec({"symmetric": ["yes"]}), "default.symmetric"),
        (spec(rules=[{"match": {}, "weights": ["uniform:4"]}]), "must match by role"),
        (spec(rules=[{"match": {"role": "stem"}}]), "must set at least one"),
        (spec(rules=[{"match": {"role": "steam"}, "weights": ["uniform:4"]}]), "Did you mean 'stem'"),
        (spec(rules=[{"match": {"kind": "conv3d"}, "weights": ["uniform:4"]}]), "No kind is like 'conv3d'"),
        ({**MINIMAL, "schema_version": 2}, "schema_version"),
    ],
)
def test_bad_files_say_where_and_why(data, message):
    with pytest.raises(ConfigurationError, match=message):
        validate(SpaceSpec, data)
