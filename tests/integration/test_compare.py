"""The table of methods on the embedded default, by the same code from Python and from the command line."""

import json

import pytest
from typer.testing import CliRunner

from evoquant.api import compare_quantization_methods
from evoquant.cli.main import APP
from evoquant.config import dump_yaml
from evoquant.config.quantizers import CompensationSpec, RoundingSpec, TuningSpec
from evoquant.errors import UnknownNameError
from evoquant.evaluate.fit_finalist import worth_keeping
from evoquant.evaluate.methods import CHEAP_METHODS, METHODS

FIGURES = {
    "images",
    "top1",
    "top1_ci95",
    "drop_pp",
    "drop_stderr_pp",
    "kl",
    "latency_ms",
    "model_size_bytes",
    "seconds",
}


@pytest.fixture(scope="module")
def rows(module_experiment):
    methods = ("fp32", "minmax", "log2", "bridge", "erq")
    return {
        row["name"]: row
        for row in compare_quantization_methods(module_experiment, methods=methods, precisions=["w4a4"])
    }


def test_each_method_is_judged_on_the_same_images(rows):
    assert list(rows) == ["fp32", "minmax w4a4", "log2", "bridge w4a4", "erq w4a4"]
    for row in rows.values():
        assert row.keys() >= FIGURES
        assert row["images"] == 64
    assert rows["fp32"]["kl"] == 0
    assert rows["fp32"]["drop_pp"] == 0


def test_methods_that_look_at_the_output_beat_the_extremes(rows):
    assert rows["bridge w4a4"]["kl"] < rows["minmax w4a4"]["kl"]
    assert rows["erq w4a4"]["kl"] < rows["minmax w4a4"]["kl"]


def test_fitting_says_what_it_brought(rows):
    fit = rows["erq w4a4"]["fit"]
    assert set(fit["divergences"]) == {"search", "sequential"}
    assert fit["kept"] == worth_keeping(fit["divergences"])
    assert rows["minmax w4a4"]["fit"] is None


def test_methods_that_take_long_are_not_in_the_default_table():
    assert set(METHODS) - set(CHEAP_METHODS) == {"erq", "learned"}


def test_unknown_names(module_experiment):
    with pytest.raises(UnknownNameError, match="minmax"):
        compare_quantization_methods(module_experiment, methods=["minmx"])
    with pytest.raises(UnknownNameError, match="w4a4"):
        compare_quantization_methods(module_experiment, methods=["full"], precisions=["w4a5"])


def test_the_command_prints_one_document(small_experiment, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(dump_yaml(small_experiment.model_dump(mode="json", exclude_none=True)))
    result = CliRunner().invoke(
        APP, ["compare", str(path), "--method", "fp32", "--method", "full", "--precision", "w8a8", "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["methods"]] == ["fp32", "full w8a8"]
    assert document["methods"][1].keys() >= FIGURES


def test_fitted_weights_can_be_written_and_judged_again(small_experiment, tmp_path):
    path, weights = tmp_path / "small.yaml", str(tmp_path / "fitted.safetensors")
    settings = CompensationSpec(
        weight_compensation="none", rounding=RoundingSpec(iterations=5), tuning=TuningSpec(steps=2)
    )
    experiment = small_experiment.model_copy(update={"compensation": settings})
    path.write_text(dump_yaml(experiment.model_dump(mode="json", exclude_none=True)))
    figures = []
    for options in (["--plan", "w4a4", "--fitted", "--save", weights], ["--plan", weights]):
        result = CliRunner().invoke(APP, ["evaluate", str(path), *options, "--json"])
        assert result.exit_code == 0, result.output
        figures.append(json.loads(result.stdout))
    fit = figures[0]["fit"]
    assert set(fit["divergences"]) == {"search", "sequential", "learned", "tuned"}
    assert fit["kept"] == worth_keeping(fit["divergences"])
    assert figures[0]["kl"] == figures[1]["kl"]
