import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import HardwareError
from evoquant.hardware.filling import fill, interpolate, load_or_start, table_path
from evoquant.hardware.table import Entry, Key, LatencyTable, read_table
from evoquant.resources import cache_folder

MACHINE = {"cpu": "Example 3000", "flags": ["avx2", "fma"], "version": "1"}


@dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, ...]
    precision: str


@dataclass(frozen=True)
class Timing:
    case: Case
    median_ms: float
    iqr_ms: float = 0.01


class Clock:
    """Times cases by a formula and remembers which it was asked for."""

    factor: ClassVar = {"fp32": 4.0, "w8a8": 2.0, "w4a8": 1.0}

    def __init__(self):
        self.asked = []

    def time(self, case):
        return self.factor[case.precision] * case.shape[0] / 100

    def __call__(self, cases):
        self.asked.extend(cases)
        return [Timing(case, self.time(case)) for case in cases]


def empty():
    return LatencyTable(MACHINE, 1, {})


def grid(shapes=(10, 20, 30, 40), precisions=("fp32", "w8a8", "w4a8")):
    return [Case("gemm", (size, 7), precision) for size in shapes for precision in precisions]


keys = st.builds(
    Key, st.sampled_from(["gemm", "conv"]), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.sampled_from(["a", "b"])
)
times = st.floats(0, 1e6, allow_nan=False)
entries = st.builds(Entry, times, times, st.sampled_from(["measured", "interpolated"]))


@given(rows=st.dictionaries(keys, entries, max_size=8))
def test_a_table_is_read_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "table.json"
    table = LatencyTable(MACHINE, 2, rows)
    table.save(path)
    assert read_table(path) == table
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_the_published_format():
    table = empty().with_entries({Key("gemm", (1, 2), "w8a8"): Entry(0.5, 0.1)})
    assert table.to_dict() == {
        "schema_version": 1,
        "machine": MACHINE,
        "threads": 1,
        "entries": [
            {
                "op": "gemm",
                "shape": [1, 2],
                "precision": "w8a8",
                "threads": 1,
                "median_ms": 0.5,
                "iqr_ms": 0.1,
                "kind": "measured",
            }
        ],
    }


def test_a_users_csv(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("op,shape,precision,threads,median_ms\ngemm,1x2x3,w8a8,4,0.25\n")
    table = read_table(path)
    assert table.threads == 4
    assert table.entries == {Key("gemm", (1, 2, 3), "w8a8"): Entry(0.25, 0.0)}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.json", "{", r"t\.json:1: Not valid JSON"),
        ("t.json", "[]", r"Expected a latency table of schema_version 1, but got None"),
        ("t.json", '{"schema_version": 2}', r"schema_version 1, but got 2"),
        ("t.json", '{"schema_version": 1, "machine": {}}', r"lacks entries, threads"),
        (
            "t.json",
            '{"schema_version": 1, "machine": {}, "threads": 1, "entries": [{"op": "a"}]}',
            r"entry 0 .*'shape'",
        ),
        ("t.csv", "op,shape\n", r"t\.csv:1: The columns median_ms, precision are missing"),
        ("t.csv", "op,shape,precision,median_ms\na,2,b,fast\n", r"line 2 .*fast"),
        ("t.csv", "op,shape,precision,median_ms\na,2,b,-1\n", r"line 2 .*a time of -1\.0 ms"),
        ("t.csv", "op,shape,precision,median_ms,kind\na,2,b,1,guessed\n", r"line 2 .*kind 'guessed'"),
        ("t.csv", "op,shape,precision,median_ms\na,2,b,1\na,2,b,1\n", r"line 3 .*repeats a 2 b"),
        (
            "t.csv",
            "op,shape,precision,median_ms,threads\na,2,b,1,1\na,3,b,1,2\n",
            r"line 3 .*threads 2 in a table of 1",
        ),
    ],
)
def test_broken_tables_are_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(HardwareError, match=told):
        read_table(tmp_path / name)


def test_a_missing_file_and_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(HardwareError, match="cannot be read"):
        read_table(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(HardwareError, match="cannot be written"):
        empty().save(tmp_path / "file" / "table.json")


def test_a_missing_entry_is_an_error_that_names_it():
    table = fill(empty(), grid(), Clock())
    assert table[Case("gemm", (10, 7), "w8a8")].median_ms == 0.2
    with pytest.raises(HardwareError, match=r"no entry for gemm 11x7 w8a8 \(it has 4 other shapes of gemm w8a8\)"):
        table[Case("gemm", (11, 7), "w8a8")]
    with pytest.raises(HardwareError, match=r"no entry for gem 1 x .*Did you mean 'gemm'"):
        table[Case("gem", (1,), "x")]


def test_only_what_is_missing_is_measured():
    clock = Clock()
    table = fill(empty(), grid(shapes=(10,)), clock)
    clock.asked.clear()
    table = fill(table, grid(), clock)
    assert len(clock.asked) == 9
    assert len(table.entries) == 12
    clock.asked.clear()
    assert fill(table, grid(), clock) == table
    assert clock.asked == []


def test_above_the_limit_the_rest_is_interpolated_and_says_so():
    clock = Clock()
    cases = grid(shapes=tuple(range(10, 200, 10)))
    table = fill(empty(), cases, clock, most_measured=30)
    assert 21 <= len(clock.asked) <= 30
    kinds = [entry.kind for entry in table.entries.values()]
    assert kinds.count("measured") == len(clock.asked)
    assert kinds.count("interpolated") == len(cases) - len(clock.asked)
    for case in cases:
        assert table[case].median_ms == pytest.approx(clock.time(case))


def test_interpolation_needs_the_shape_and_the_precision():
    table = fill(empty(), grid(), Clock())
    with pytest.raises(HardwareError, match="gemm 11x7 w8a8 cannot be interpolated"):
        interpolate(table, [Key("gemm", (11, 7), "w8a8")])


def test_a_case_that_was_not_timed_is_named():
    with pytest.raises(HardwareError, match=r"No time was measured for gemm 10x7 fp32 \(and 11 more\)"):
        fill(empty(), grid(), lambda _: [])


def test_a_table_is_reused_on_its_machine_and_refused_elsewhere(tmp_path):
    path = tmp_path / "table.json"
    table = fill(load_or_start(path, MACHINE, 1), grid(), Clock())
    table.save(path)
    assert load_or_start(path, MACHINE, 1) == table
    other = {**MACHINE, "cpu": "Example 4000"}
    with pytest.raises(HardwareError, match="cpu: 'Example 3000' there, 'Example 4000' here"):
        load_or_start(path, other, 1)
    with pytest.raises(HardwareError, match="threads: 1 there, 2 here"):
        load_or_start(path, MACHINE, 2)


def test_the_fingerprint_of_one_machine_is_the_same_after_a_way_through_json():
    replace(empty(), machine=json.loads(json.dumps(MACHINE))).check_machine(
        {**MACHINE, "flags": ("avx2", "fma")}, threads=1, place="here"
    )


def test_tables_of_different_machines_have_different_names(tmp_path):
    names = {
        table_path(machine, threads, tmp_path)
        for machine in (MACHINE, {**MACHINE, "version": "2"})
        for threads in (1, 2)
    }
    assert len(names) == 4
    assert table_path(MACHINE, 1, tmp_path) == table_path(dict(reversed(MACHINE.items())), 1, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of other platforms differ")
def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOQUANT_CACHE", str(tmp_path))
    assert cache_folder("latency") == tmp_path / "latency"
    monkeypatch.delenv("EVOQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("latency") == tmp_path / "xdg" / "evoquant" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("latency") == Path.home() / ".cache" / "evoquant" / "latency"
