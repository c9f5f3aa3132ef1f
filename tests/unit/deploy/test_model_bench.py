"""The benchmark of whole models, on a small one: what it tells, not how fast anything is."""

import pytest
from typer.testing import CliRunner

from evoquant.cli.main import APP
from evoquant.deploy import onnx_model
from evoquant.deploy.bench import bench_model
from evoquant.errors import ConfigurationError
from evoquant.hardware import load_device
from evoquant.hardware.legality import legaliser
from evoquant.kernels import onnx_runtime
from evoquant.run.space import read_space
from evoquant.space import SearchSpace


def test_it_times_all_precisions_and_compares_sums_with_models(hybrid):
    device = load_device("host_cpu")
    space = SearchSpace.build(read_space("mobile_hybrid"), hybrid.captured.graph, legal=legaliser(device))
    images = [image[None] for image in hybrid.images[:2]]
    found = bench_model(
        hybrid.model, hybrid.captured, hybrid.operands, space, device, images,
        threads=[1], precisions=["fp32", "w8a8"], genomes=3, rounds=2, seconds=1e-4,
    )  # fmt: skip
    (whole,) = found["whole"]
    assert (whole["threads"], whole["clock"]) == (1, "cpu")
    assert {"evoquant_fp32", "evoquant_w8a8"} <= set(whole["times"])
    assert len(found["table"]["genomes"]) == 3
    assert all(genome["table_ms"] > 0 and genome["measured_ms"] > 0 for genome in found["table"]["genomes"])
    if onnx_runtime.is_available():
        assert found["missing"] == {}
        assert whole["ratios"]["evoquant_w8a8"]["times_best_onnxruntime_int8"] > 0


def test_what_cannot_be_exported_is_named_and_the_rest_is_timed(hybrid, monkeypatch):
    if not onnx_runtime.is_available():
        pytest.skip("onnx and onnxruntime are not installed")
    monkeypatch.setattr(onnx_model, "OPSET", -1)
    runs, missing = onnx_model.timers(hybrid.model, [hybrid.images[:1]], threads=1)
    assert runs == {}
    assert "cannot export" in missing["onnxruntime"]


def test_the_command_takes_an_experiment_or_models(tmp_path):
    result = CliRunner().invoke(APP, ["bench", "model", str(tmp_path / "a.yaml"), "--model", "resnet18"])
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception) == "Give an experiment file, or --model NAME."
