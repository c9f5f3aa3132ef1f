"""Wrong input: one screen, exit code 2, nothing half-written."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from evoquant import models
from evoquant.cli import main
from evoquant.config import dump_yaml, experiment_to_dict
from evoquant.errors import GraphError, ModelError
from evoquant.resources import folder
from evoquant.run import run_experiment


@pytest.fixture
def refused(small_experiment, tmp_path, capsys):
    """Search an experiment after a change to its fields; expect a refusal and return the message."""

    def refuse(change, *arguments):
        data = experiment_to_dict(small_experiment)
        change(data)
        file = tmp_path / "experiment.yaml"
        file.write_text(dump_yaml(data))
        with pytest.raises(SystemExit) as exit_info:
            main(["search", str(file), "--run-dir", str(tmp_path / "run"), *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert len(printed.err.splitlines()) < 25
        assert not (tmp_path / "run" / "pareto.json").exists()
        return " ".join(printed.err.split())

    return refuse


def set_path(*keys, value):
    def change(data):
        *around, last = keys
        for key in around:
            data = data[key]
        data[last] = value

    return change


def test_an_unknown_key_has_file_line_and_a_hint(refused):
    message = refused(set_path("search", "popsize", value=3))
    assert "search.popsize" in message
    assert "experiment.yaml:" in message
    assert "population_size" in message


def test_bits_out_of_range(refused):
    space = {"schema_version": 1, "default": {"weights": ["uniform:9"], "activations": ["uniform:8"]}}
    assert "uniform:9" in refused(set_path("space", value=space))


def test_unknown_names_have_a_hint(refused):
    assert "Did you mean 'mobile_hybrid'" in refused(set_path("space", value="mobile_hybird"))
    assert "Did you mean 'raspberry_pi_4'" in refused(set_path("target", "device", value=["rasberry_pi_4"]))
    message = refused(lambda data: data["model"].update(name="mobilvit_xxs", pretrained=False))
    assert "Did you mean 'mobilevit_xxs'" in message


def test_a_missing_image_folder(refused, tmp_path):
    missing = str(tmp_path / "nowhere")
    message = refused(set_path("data", "selection", value={"images": missing, "count": 4}))
    assert "nowhere" in message


def test_an_empty_image_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(set_path("data", "calibration", value={"images": str(tmp_path / "empty")}))


def test_the_same_images_for_calibration_and_test(refused):
    assert "calibration" in refused(set_path("data", "test", value={"images": "embedded:calibration", "count": 16}))


def write_images(target: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = target / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(place / f"{number}.png")


def test_an_unreadable_image_is_named(refused, tmp_path):
    for split, seed in (("calibration", 1), ("selection", 2), ("test", 3)):
        write_images(tmp_path / "images" / split, 6, seed)
    (tmp_path / "images" / "selection" / "0" / "broken.png").write_bytes(b"no image")

    def change(data):
        for split in ("calibration", "selection", "test"):
            data["data"][split] = {"images": str(tmp_path / "images" / split)}

    assert "broken.png" in refused(change)


def test_weights_that_do_not_fit(refused, tmp_path):
    weights = load_file(folder("embedded") / "mobilevit_micro.safetensors")
    weights["head.fc.weight"] = torch.zeros(7, 192)
    save_file(weights, tmp_path / "wrong.safetensors")
    model = {"name": "mobilevit_micro", "checkpoint": str(tmp_path / "wrong.safetensors")}
    message = refused(set_path("model", value=model))
    assert "head.fc.weight is (7, 192), but the model has (10, 192)" in message


def test_a_run_folder_of_another_experiment(small_experiment, tmp_path, capsys):
    file = tmp_path / "experiment.yaml"
    short = experiment_to_dict(small_experiment)
    short["search"].update(population_size=2, evaluations=2)
    short["evaluation"]["test_points"] = 0
    for seed, code in ((0, 0), (1, 2)):
        short["search"]["seed"] = seed
        file.write_text(dump_yaml(short))
        with pytest.raises(SystemExit) as exit_info:
            main(["search", str(file), "--run-dir", str(tmp_path / "run")])
        assert exit_info.value.code == code
    assert "holds another run" in capsys.readouterr().err


def test_a_full_disk(small_experiment, tmp_path, capsys, monkeypatch):
    from evoquant.run import start

    original = start.Journal

    class Full(original):
        def __init__(self, path):
            super().__init__(path)
            self._connection.execute("PRAGMA max_page_count = 6")

    monkeypatch.setattr(start, "Journal", Full)
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(experiment_to_dict(small_experiment)))
    with pytest.raises(SystemExit) as exit_info:
        main(["search", str(file), "--run-dir", str(tmp_path / "run")])
    assert exit_info.value.code == 2
    assert "database or disk is full" in " ".join(capsys.readouterr().err.split())


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


async def run_model(small_experiment, model, tmp_path):
    model.pretrained_cfg = models.mobilevit_micro().pretrained_cfg
    return await run_experiment(small_experiment, run_dir=tmp_path / "run", model=model)


def test_a_model_that_does_not_export(small_experiment, tmp_path):
    import asyncio

    with pytest.raises(GraphError, match="cannot be captured"):
        asyncio.run(run_model(small_experiment, Branching(), tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_model_whose_output_is_not_finite(small_experiment, tmp_path):
    import asyncio

    model = models.mobilevit_micro()
    with torch.no_grad():
        model.head.fc.bias[0] = float("nan")
    with pytest.raises((ModelError, GraphError), match="not finite"):
        asyncio.run(run_model(small_experiment, model.eval(), tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_and_run_folder(refused, tmp_path, capsys):
    message = refused(
        set_path("model", value={"name": "mobilevit_micro", "checkpoint": str(tmp_path / "no.safetensors")})
    )
    assert "no such checkpoint" in message
    with pytest.raises(SystemExit) as exit_info:
        main(["report", str(tmp_path / "nothing")])
    assert exit_info.value.code == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _clean(tmp_path):
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
