import re

import pytest

from evoquant.errors import ConfigurationError, UnknownNameError
from evoquant.hardware import device_names, load_device
from evoquant.hardware.work import WorkClass
from evoquant.resources import folder
from evoquant.types.target import HardwareTarget

PI = (folder("hardware_models") / "raspberry_pi_4.yaml").read_text()


def write(tmp_path, text):
    path = tmp_path / "raspberry_pi_4.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", device_names())
def test_every_shipped_device_loads_and_every_figure_has_a_ground(name):
    device = load_device(name)
    figures = dict(device.quantities())
    assert len(figures) >= 18
    for figure in figures.values():
        assert figure.source or figure.how or figure.why
        assert figure.source is None or figure.source in device.sources


@pytest.mark.parametrize("target", HardwareTarget)
def test_every_target_has_a_device(target):
    assert load_device(target).target is target
    assert load_device(target.value).target is target


@pytest.mark.parametrize("name", device_names())
def test_a_wider_type_is_never_faster(name):
    device = load_device(name)
    for narrow in device.types.values():
        for wide in device.types.values():
            if not narrow.is_float and not wide.is_float and wide[1] >= narrow[1] and wide[2] >= narrow[2]:
                for work in WorkClass:
                    rate = [t.peak_gmacs_per_s * device.utilisation(t, work).value for t in (narrow, wide)]
                    assert rate[1] <= rate[0]


def test_unknown_device_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown device 'rasberry_pi_4'\. Did you mean 'raspberry_pi_4'\?"):
        load_device("rasberry_pi_4")


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("dram_gb_per_s: 5", r"memory\.dram_gb_per_s: Input should be"),
        ("dram_gb_per_s: {value: 5, why: because}", r"memory\.dram_gb_per_s\.kind: Field required"),
        ("dram: {value: 5, kind: assumed, why: so}", r"memory\.dram: Extra inputs .*Available: dram_gb_per_s"),
        ("dram_gb_per_s: {value: 5, kind: datasheet}", "A figure of kind 'datasheet' needs 'source'"),
        ("dram_gb_per_s: {value: 5, kind: assumed}", "A figure of kind 'assumed' needs 'why'"),
        ("dram_gb_per_s: {value: 5, kind: derived}", "A figure of kind 'derived' needs 'how'"),
        ("dram_gb_per_s: {value: 5, kind: published, source: xnpack}", r"Unknown source 'xnpack'\. Did you mean 'xnn"),
        ("dram_gb_per_s: {value: -5, kind: assumed, why: so}", "greater than or equal to 0"),
        ("dram_gb_per_s: {value: fast, kind: assumed, why: so}", "valid number"),
    ],
)
def test_a_number_without_unit_kind_or_source_is_refused_with_file_and_line(tmp_path, entry, told):
    text, count = re.subn(r"dram_gb_per_s: .*", entry, PI)
    assert count == 1
    path = write(tmp_path, text)
    line = line_of(text, entry.split(":")[0] + ":")
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}:{line}: ") + f".*{told}"):
        load_device(path)


def test_problems_beyond_the_schema_are_all_reported(tmp_path):
    text = PI.replace("float_type: fp32", "float_type: bf16").replace("  dense: {value: 0.3", "  danse: {value: 1.3")
    with pytest.raises(ConfigurationError) as caught:
        load_device(write(tmp_path, text))
    told = str(caught.value)
    assert "Has no entry for the float_type 'bf16'" in told
    assert "Has no entry for the class 'dense'" in told
    assert "utilisation_fraction.danse: Expected a class" in told
    assert "A share lies in (0, 1], but got 1.3" in told


def test_the_name_is_that_of_the_file(tmp_path):
    with pytest.raises(ConfigurationError, match="Must be the name of the file"):
        load_device(write(tmp_path, PI.replace("name: raspberry_pi_4", "name: raspberry_pi")))


def test_a_rule_names_an_existing_type(tmp_path):
    text = PI.replace("    stores: [w8a8, fp32]", "    stores: [w8a8, fp32]\n    executes: w8a9")
    assert text != PI
    with pytest.raises(ConfigurationError, match=r"Unknown native type 'w8a9'\. Did you mean 'w8a8'"):
        load_device(write(tmp_path, text))


def test_a_bad_precision_in_a_rule(tmp_path):
    text = PI.replace("w2-8a8", "w2-8b8")
    with pytest.raises(ConfigurationError, match=r"support\.0.*A precision is written 'fp32' or like 'w4a8'"):
        load_device(write(tmp_path, text))
