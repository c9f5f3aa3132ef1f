from __future__ import annotations

import re
from pathlib import Path

import pytest

from evoquant.config import (
    Experiment,
    experiment_differences,
    experiment_hash,
    experiment_to_dict,
    experiment_to_yaml,
    load_experiment,
    validate,
    with_effort,
)
from evoquant.errors import ConfigurationError, UnknownNameError

MINIMAL = """\
schema_version: 1
name: tiny
model: {name: mobilevit_micro, pretrained: true}
data:
  calibration: {images: "embedded:calibration", count: 64}
  selection: {images: "embedded:selection", count: 256}
  test: {images: "embedded:test"}
"""


def read(tmp_path: Path, text: str) -> Experiment:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_experiment(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError, match=r"x\.yaml") as info:
        read(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/") for problem in info.value.problems]


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    experiment = read(tmp_path, MINIMAL)
    assert experiment.objectives == ("kl", "latency_ms", "energy_mj", "memory_mb")
    assert experiment.target.device == ("host_cpu",)
    assert experiment.target.latency == "measured"
    assert experiment.evaluation.threads == 1
    assert experiment.data.unreadable == "refuse"
    assert experiment.constraints.limits == {}
    assert experiment.search.minutes is None


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOQUANT_ASSETS", str(tmp_path / "assets"))
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "x.yaml"
    path.write_text(
        "schema_version: 1\nname: a\nmodel: {name: m, checkpoint: ../w.safetensors}\n"
        "data:\n  calibration: {images: images, labels: l.csv}\n"
        "  selection: {images: '${EVOQUANT_ASSETS}/s'}\n  test: {images: /t.npz}\n"
        "space: ./mine.yaml\n"
        "target: {device: [host_cpu, d/mine.yaml], latency: table, latency_table: {d/mine.yaml: t.json}}\n"
    )
    experiment = load_experiment(path)
    assert experiment.model.checkpoint == tmp_path / "w.safetensors"
    assert experiment.data.calibration.images == str(tmp_path / "sub" / "images")
    assert experiment.data.calibration.labels == tmp_path / "sub" / "l.csv"
    assert experiment.data.selection.images == str(tmp_path / "assets" / "s")
    assert experiment.data.test.images == "/t.npz"
    assert experiment.space == str(tmp_path / "sub" / "mine.yaml")
    assert experiment.target.device == ("host_cpu", str(tmp_path / "sub" / "d" / "mine.yaml"))
    mine = experiment.target.device[1]
    assert experiment.target.latency_table == {mine: tmp_path / "sub" / "t.json"}
    assert experiment.target.table_of(mine) == tmp_path / "sub" / "t.json"
    assert experiment.target.table_of("host_cpu") is None
    assert experiment.output.dir == Path("runs")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{latency: table}", "latency_table goes with latency: table"),
        ("{latency_table: t.json}", "latency_table goes with latency: table"),
        ("{device: [a, b], latency: table, latency_table: t.json}", r"whose table it is: latency_table: \{a: FILE\}"),
        ("{device: [a, b], latency: table, latency_table: {c: t.json}}", "names c, which device does not list"),
    ],
)
def test_a_latency_table_belongs_to_a_device(tmp_path: Path, target: str, told: str) -> None:
    (problem,) = problems(tmp_path, MINIMAL + f"target: {target}\n")
    assert re.search(told, problem)


def test_a_single_device_needs_no_name_for_its_table(tmp_path: Path) -> None:
    target = read(tmp_path, MINIMAL + "target: {device: pi, latency: table, latency_table: t.csv}\n").target
    assert target.table_of("pi") == tmp_path / "t.csv"


def test_a_space_may_be_named_or_written_inside(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL + "space: int8_only\n").space == "int8_only"
    inside = read(tmp_path, MINIMAL + "space: {default: {weights: ['uniform:4']}}\n").space
    assert inside == {"default": {"weights": ["uniform:4"]}}


def test_the_resolved_experiment_is_read_back(tmp_path: Path) -> None:
    first = read(tmp_path, MINIMAL + "constraints: {latency_ms: 1e-3}\ntarget: {device: x}\nspace: {a: no}\n")
    assert first.constraints.latency_ms == 0.001
    again = read(tmp_path, experiment_to_yaml(first))
    assert again == first
    assert experiment_hash(again) == experiment_hash(first)
    assert experiment_to_dict(first)["space"] == {"a": "no"}


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = MINIMAL + (
        "search:\n  popsize: 3\n  mutation_rate: 1.5\ntarget:\n  latency: mesured\nobjectives: [kl, latency]\n"
        "constraints: {latency: 3}\n"
    )
    assert problems(tmp_path, text) == [
        "x.yaml:9: search.popsize: Extra inputs are not permitted, but got 3. Did you mean 'population_size'?",
        "x.yaml:10: search.mutation_rate: Input should be less than or equal to 1, but got 1.5.",
        "x.yaml:12: target.latency: Input should be 'measured', 'roofline' or 'table', but got 'mesured'."
        " Did you mean 'measured'?",
        "x.yaml:13: objectives.1: Input should be 'kl', 'latency_ms', 'energy_mj', 'memory_mb', 'accuracy_drop_pp',"
        " 'model_size_bytes' or 'average_bits', but got 'latency'. Did you mean 'latency_ms'?",
        "x.yaml:14: constraints.latency: Extra inputs are not permitted, but got 3. Did you mean 'latency_ms'?",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("schema_version: 1", "schema_version: 2"), r"x.yaml:1: schema_version: Input should be 1, but got 2"),
        (("name: tiny", "name: a/b"), r"x.yaml:2: name: String should match pattern .* but got 'a/b'"),
        (("pretrained: true", "pretrained: yes"), r"model.pretrained: Input should be a valid boolean, but got 'yes'"),
        (
            ("pretrained: true", "pretrained: true, checkpoint: w"),
            r"model: Weights come from checkpoint or .* got both",
        ),
        (
            ("embedded:test", "embedded:tset"),
            r"data.test.images: Expected embedded:calibration, .* got 'embedded:tset'",
        ),
        (("count: 64", "count: 0"), r"data.calibration.count: Input should be greater than 0, but got 0"),
        (("name: tiny", "name: tiny\ntarget: {latency: table}"), r"target: latency_table goes with latency: table"),
        (
            ("name: tiny", "name: tiny\nobjectives: [kl, kl]"),
            r"objectives: Each may be listed once, but kl is repeated",
        ),
        (("name: tiny", "name: tiny\nobjectives: []"), r"objectives: Tuple should have at least 1 item"),
        (("name: tiny", "name: tiny\nconstraints: {latency_ms: .inf}"), r"latency_ms: Input should be a finite number"),
        (
            ("name: tiny", "name: tiny\nevaluation: {ray_address: auto}"),
            r"ray_address goes with executor: ray, but got",
        ),
        (('  test: {images: "embedded:test"}\n', ""), r"x.yaml:4: data.test: Field required"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in MINIMAL
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, MINIMAL.replace(*change))


def test_the_hash_leaves_out_what_has_no_effect(tmp_path: Path) -> None:
    base = read(tmp_path, MINIMAL)
    same = read(
        tmp_path,
        MINIMAL.replace("name: tiny", "name: other")
        + "output: {dir: /tmp/x}\nevaluation: {parallel_evaluations: 1, executor: ray, ray_address: auto}\n",
    )
    assert experiment_hash(base) == experiment_hash(same)
    assert experiment_differences(base, same) == []
    other = read(tmp_path, MINIMAL + "search: {seed: 1}\nevaluation: {threads: 2}\nspace: {a: 1}\n")
    assert experiment_hash(base) != experiment_hash(other)
    assert experiment_differences(base, other) == [
        "space: 'mobile_hybrid' before, None now",
        "search.seed: 0 before, 1 now",
        "evaluation.threads: 1 before, 2 now",
        "space.a: None before, 1 now",
    ]


def test_efforts(tmp_path: Path) -> None:
    base = read(tmp_path, MINIMAL + "search: {evaluations: 400, population_size: 16}\n")
    assert with_effort(base, "default") == base
    quick = with_effort(base, "quick")
    assert (quick.search.evaluations, quick.search.population_size) == (120, 16)
    assert quick.data.selection.count == 128
    assert quick.data.test == base.data.test
    assert quick.evaluation.test_points == 6
    assert with_effort(quick, "quick") == quick
    extensive = with_effort(base, "extensive")
    assert (extensive.search.evaluations, extensive.search.population_size) == (1600, 32)
    assert experiment_hash(quick) != experiment_hash(base)


def test_quick_never_enlarges(tmp_path: Path) -> None:
    small = read(
        tmp_path,
        MINIMAL.replace("count: 256", "count: 10")
        + "search: {evaluations: 5, population_size: 2}\nevaluation: {test_points: 0}\n",
    )
    assert with_effort(small, "quick") == small


def test_experiments_are_frozen() -> None:
    data = {"images": "embedded:test"}
    experiment = validate(
        Experiment,
        {
            "schema_version": 1,
            "name": "a",
            "model": {"name": "m"},
            "data": {"calibration": data, "selection": data, "test": data},
        },
    )
    with pytest.raises(ValueError, match="frozen"):
        experiment.search.seed = 3  # type: ignore[misc]


FAMILY = MINIMAL + "architectures:\n  - {name: a}\n  - {name: b, model: {image_size: 24}}\n"


def test_architectures_differ_from_the_model_in_some_fields(tmp_path: Path) -> None:
    text = FAMILY.replace("pretrained: true", "checkpoint: micro.safetensors").replace("image_size: 24", "{}")
    text = text.replace("{{}}", "{name: mobilevit_xxs, checkpoint: xxs.safetensors, image_size: 64}")
    experiment = read(tmp_path, text)
    alone = experiment.by_architecture()
    assert list(alone) == ["a", "b"]
    assert alone["a"].model == experiment.model
    assert alone["b"].model.checkpoint == tmp_path / "xxs.safetensors"
    assert (alone["b"].model.name, alone["b"].model.image_size) == ("mobilevit_xxs", 64)
    assert experiment_to_dict(alone["a"]) == experiment_to_dict(alone["a"].of_architecture(None))
    assert experiment.of_architecture("b") == alone["b"]
    path = tmp_path / "y.yaml"
    path.write_text(experiment_to_yaml(experiment))
    assert load_experiment(path) == experiment
    assert experiment_hash(experiment) != experiment_hash(alone["a"])


def test_without_architectures_nothing_is_said_of_them(tmp_path: Path) -> None:
    experiment = read(tmp_path, MINIMAL)
    assert "architectures" not in experiment_to_dict(experiment)
    assert experiment.by_architecture() == {None: experiment}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("\n  - {name: b, model: {image_size: 24}}", ""), "expected two or more, but got one"),
        (("{name: b, model: {image_size: 24}}", "{name: b}"), "'a' and 'b' are the same model"),
        (("name: b", "name: a"), "each needs a name of its own, but a is repeated"),
        (("image_size: 24", "imagesize: 24"), "Did you mean 'image_size'?"),
        (("architectures:", "search: {algorithm: nsga2}\narchitectures:"), "but got search.algorithm: nsga2"),
        (("architectures:", "search: {racing: true}\narchitectures:"), "but got search.racing: true"),
        (("architectures:", "search: {baselines: [random]}\narchitectures:"), "search.baselines: ['random']"),
        (("architectures:", "target: {device: [host_cpu, nvidia_t4]}\narchitectures:"), "'host_cpu', 'nvidia_t4'"),
    ],
)
def test_architectures_that_do_not_fit_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in FAMILY
    assert message in " ".join(problems(tmp_path, FAMILY.replace(*change)))


def test_another_model_needs_weights_of_its_own(tmp_path: Path) -> None:
    text = FAMILY.replace("pretrained: true", "checkpoint: micro.safetensors")
    (told,) = problems(tmp_path, text.replace("image_size: 24", "name: mobilevit_xxs"))
    assert "mobilevit_xxs cannot have micro.safetensors, the checkpoint of mobilevit_micro" in told
    assert read(tmp_path, FAMILY.replace("image_size: 24", "pretrained: false")).by_architecture()["b"]


def test_an_architecture_is_chosen_by_name(tmp_path: Path) -> None:
    family, single = read(tmp_path, FAMILY), read(tmp_path, MINIMAL)
    with pytest.raises(ConfigurationError, match=r"'tiny' has several architectures: a, b\. Choose one"):
        family.of_architecture(None)
    with pytest.raises(UnknownNameError, match=r"Unknown architecture 'c'.*Available: a, b"):
        family.of_architecture("c")
    with pytest.raises(ConfigurationError, match="'b' is wanted, but the experiment 'tiny' has no architectures"):
        single.of_architecture("b")
