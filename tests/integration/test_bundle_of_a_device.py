"""From an experiment to a bundle, from its runner to a latency table, from the table to a search."""

import json
import subprocess
import sys

import pytest

from evoquant.cli import main
from evoquant.config import dump_yaml, experiment_to_dict
from evoquant.hardware import read_table

pytest.importorskip("onnxruntime", reason="needs the extra 'deploy'")
pytest.importorskip("onnx", reason="needs the extra 'deploy'")

SPACE = {"schema_version": 1, "default": {"weights": ["uniform:4", "uniform:8"], "activations": ["uniform:8"]}}


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return json.loads(printed.out)


@pytest.fixture
def written(small_experiment, tmp_path):
    """Writes an experiment of few evaluations with changes to its target."""

    def write(name, **target):
        data = experiment_to_dict(small_experiment)
        data["space"] = SPACE
        data["search"].update(population_size=2, evaluations=3)
        data["evaluation"]["test_points"] = 0
        data["target"].update(target)
        path = tmp_path / name
        path.write_text(dump_yaml(data))
        return path

    return write


def test_the_runner_of_a_bundle_gives_a_table_that_a_search_takes(written, tmp_path, capsys):
    folder = tmp_path / "bundle"
    found = command(capsys, "profile", written("predicted.yaml"), "--bundle", folder)
    assert found["device"] == "raspberry_pi_4"
    assert found["models"] == len(list((folder / "models").glob("*.onnx"))) < found["cases"]
    runner = [sys.executable, "-I", "run.py", "--repetitions", "1", "--output", str(tmp_path / "table.json")]
    subprocess.run(runner, cwd=folder, capture_output=True, timeout=300, check=True)
    table = read_table(tmp_path / "table.json")
    assert len(table.entries) == found["cases"]

    timed = written("timed.yaml", latency="table", latency_table="table.json")
    result = command(capsys, "search", timed, "--run-dir", tmp_path / "run")
    (target,) = result["targets"]
    assert target["latency_kind"] == "measured"
    assert "table.json" in target["latency"]
    plain = {entry["name"]: entry["objectives"] for entry in result["baselines"]}
    total = sum(entry.median_ms for entry in table.entries.values())
    assert 0 < plain["w8a8"]["latency_ms"] < 10 * total
    assert plain["w4a8"]["latency_ms"] == pytest.approx(plain["w8a8"]["latency_ms"], rel=0.2), "both run as bytes"


def test_energy_is_metered_or_the_machine_shows_no_counter(written, capsys, monkeypatch):
    monkeypatch.setattr("evoquant.hardware.rapl.domains", lambda _root: ())
    with pytest.raises(SystemExit) as ended:
        main(["profile", str(written("predicted.yaml")), "--energy"])
    assert ended.value.code == 2
    assert "exposes no readable energy counter" in " ".join(capsys.readouterr().err.split())


def test_a_bundle_is_for_another_device_or_times_are_for_this_one(written, tmp_path, capsys):
    file = written("predicted.yaml")
    for arguments, told in (
        ([], "is not this machine. Write what to time there with --bundle"),
        (["--bundle", str(tmp_path / "b"), "--out", str(tmp_path / "t.json")], "--bundle times nothing"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["profile", str(file), *arguments])
        assert ended.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())
