"""The embedded default from a run to a packed model and back."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from evoquant.calibrate.sequential import fit_sequentially
from evoquant.cli.main import APP
from evoquant.config import experiment_to_yaml
from evoquant.deploy import compare_packed, export_run, load_packed, pack, save_packed, verify_packed, verify_run
from evoquant.errors import ConfigurationError, ModelError
from evoquant.evaluate import prepare
from evoquant.evaluate.finalist import Finalist, load_finalist, save_finalist
from evoquant.hardware.memory import memory
from evoquant.kernels import info
from evoquant.run import write_front
from evoquant.space import preset_plan
from evoquant.types.front import FrontDocument, ParetoPoint

pytestmark = pytest.mark.skipif(not info().available, reason="the native kernels are not built")


@pytest.fixture(scope="module")
def bench(module_experiment):
    return prepare(module_experiment)


@pytest.mark.parametrize("preset", ["fp32", "w8a8", "w4a8", "w4a4", "efficientquant"])
def test_a_preset_keeps_its_classes_and_its_logits(bench, preset, tmp_path):
    plan = preset_plan(preset, bench.captured.graph, bench.classes)
    model = pack(bench.captured, bench.evaluator.operands, plan)
    images = bench.evaluator.images("test")
    packed = torch.cat([model(batch) for batch in images.batches])
    found = compare_packed(packed, bench.evaluator.logits(plan, split="test"), images)
    assert found["passed"], found
    assert not model.fallbacks
    again = load_packed(save_packed(model, tmp_path))
    torch.testing.assert_close(again(images.batches[0]), model(images.batches[0]), rtol=0, atol=0)


def test_a_finalist_keeps_its_logits_in_a_file_and_in_a_packed_model(bench, tmp_path):
    """What fitting has changed (codes, scales, biases) reaches the simulation and the kernels alike."""
    plan = preset_plan("w4a8", bench.captured.graph, bench.classes)
    images = list(bench.calibration.batches(16))
    operands, settings = bench.evaluator.operands, bench.experiment.compensation
    weights = fit_sequentially(bench.captured, plan, images, operands.quantizer, settings)
    judged = bench.with_weights(plan, weights)
    logits = judged.evaluator.logits(plan, split="test")
    assert not torch.equal(logits, bench.evaluator.logits(plan, split="test"))
    save_finalist(Finalist(plan, weights), tmp_path / "finalist.safetensors")
    again = load_finalist(tmp_path / "finalist.safetensors")
    assert again.plan == plan
    assert torch.equal(bench.with_weights(again.plan, again.weights).evaluator.logits(plan, split="test"), logits)
    model = pack(judged.captured, judged.evaluator.operands, plan)
    assert verify_packed(model, judged)["accuracy"]["passed"]
    with pytest.raises(ModelError, match="was made from other weights"):
        verify_packed(model, replace(bench, identity={**bench.identity, "program": "of another model"}))


@pytest.fixture
def run_folder(module_experiment, bench, tmp_path, monkeypatch):
    """What a run leaves that export and verify read: its configuration and its front, here of one point.

    The model is prepared once for the whole module.
    """
    monkeypatch.setattr("evoquant.deploy.exports.prepare", lambda _: bench)
    plan = preset_plan("w4a8", bench.captured.graph, bench.classes)
    size = float(memory(bench.captured.graph, plan).model_size_bytes)
    point = ParetoPoint("p01", "W4A8", {"model_size_bytes": size}, plan)
    front = FrontDocument(
        "mobilevit_micro", "raspberry_pi_4", "done", ("model_size_bytes",), (point,), (), "p01", 0.0, {}, (), (), (), (), 1, 0,
        0, 0.0, "",
    )  # fmt: skip
    write_front(tmp_path, front)
    (tmp_path / "config.yaml").write_text(experiment_to_yaml(module_experiment))
    return tmp_path


def test_a_point_of_a_run_is_exported_and_verified(run_folder):
    run = CliRunner().invoke
    exported = run(APP, ["export", str(run_folder), "--json"])
    assert exported.exit_code == 0, exported.output
    (entry,) = json.loads(exported.stdout)["exports"]
    assert (entry["id"], entry["fallbacks"]) == ("p01", {})
    verified = run(APP, ["verify", str(run_folder), "--json"])
    assert verified.exit_code == 0, verified.output
    (record,) = json.loads(verified.stdout)["points"]
    assert record["accuracy"]["passed"]
    assert record["size"]["stored_weight_bytes"] == record["size"]["predicted_weight_bytes"]
    assert record["not_measured"]["latency"].startswith("the search took it from another source")
    shown = run(APP, ["verify", str(run_folder)])
    assert "p01 W4A8: passed" in shown.stdout
    assert "ok     top-1" in shown.stdout


def test_an_export_of_another_plan_is_refused(run_folder, bench):
    plan = preset_plan("w8a8", bench.captured.graph, bench.classes)
    save_packed(pack(bench.captured, bench.evaluator.operands, plan), run_folder / "exports" / "p01")
    with pytest.raises(ModelError, match="the exported plan is not that of point p01"):
        verify_run(run_folder, ["knee"])
    with pytest.raises(ConfigurationError, match=r"no point 'p09'\. Available: knee, p01"):
        export_run(run_folder, ["p09"])
