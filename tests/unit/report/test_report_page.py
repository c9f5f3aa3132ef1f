from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evoquant.errors import RunError
from evoquant.report import write_plots, write_report
from evoquant.types.front import FrontDocument
from evoquant.types.graph import ModelGraph

NAMES = {"objective_pairs", "accuracy", "bits_by_layer", "front_bits", "hypervolume"}
VOID = {"meta", "img"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed but not open; notes links to anything outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.rows += tag == "tr"
        self.outside += [value for key, value in attrs if key in ("src", "href") and not str(value).startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, document: FrontDocument, graph: ModelGraph) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert write_report(folder, document, {None: graph}, latency_kind="measured") == folder / "report.html"
    return folder


def test_the_page_is_whole_and_needs_nothing_else(folder: Path, document: FrontDocument) -> None:
    page = (folder / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.outside == []
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    heads, baselines, knee, provenance = 2, len(document.baselines), 1, 5
    assert parser.rows == heads + baselines + knee + len(document.front) + provenance


def test_the_plots_are_inside_and_beside(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    files = {path.stem: path.read_bytes() for path in (folder / "plots").glob("*.png")}
    assert files.keys() == NAMES
    for data in files.values():
        assert data.startswith(b"\x89PNG")
        assert base64.b64encode(data).decode() in page


def test_it_tells_what_matters(folder: Path, document: FrontDocument) -> None:
    page = (folder / "report.html").read_text()
    knee = document.point("knee")
    assert knee.test is not None
    for text in (
        document.verdict,
        f"{knee.test.top1:.2f} [{knee.test.ci95[0]:.2f}, {knee.test.ci95[1]:.2f}]",
        "400 evaluations (2 failed)",
        "p09 ★",
        "Latencies are measured",
        "residual additions stay in floating point",
        "machine.cpu",
        "evoquant search &lt;x&gt;.yaml",
    ):
        assert text in page
    assert "<x>" not in page


def test_an_infeasible_search_without_a_knee(tmp_path: Path, document: FrontDocument) -> None:
    front = tuple(replace(point, test=None) for point in document.front[:1])
    names = ("kl", "latency_ms")
    best = replace(document, front=front, knee=None, status="infeasible", baselines=(), objectives=names, evaluated=())
    page = write_report(tmp_path, best).read_text()
    assert "no candidate meets the constraints" in page
    assert "1 of 1 points of the front were not judged on test images" in page
    assert "No point was judged on test images" in page


def test_an_empty_front(tmp_path: Path, document: FrontDocument) -> None:
    empty = replace(document, front=(), knee=None, status="interrupted")
    assert write_plots(tmp_path, empty).keys() == {"hypervolume"}
    assert "Search interrupted" in write_report(tmp_path, empty).read_text()


def test_a_folder_that_cannot_be_written(tmp_path: Path, document: FrontDocument) -> None:
    (tmp_path / "plots").write_text("a file is in the way")
    with pytest.raises(RunError, match=r"Cannot write plots to .*plots: "):
        write_plots(tmp_path, replace(document, front=(), knee=None))
    (tmp_path / "plots").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"Cannot write the report to "):
        write_report(tmp_path, replace(document, front=(), knee=None))
    assert {path.name for path in tmp_path.iterdir()} == {"plots", "report.html"}


def test_architectures_have_a_table_and_maps_of_their_own(
    tmp_path: Path, family: FrontDocument, graph: ModelGraph
) -> None:
    page = write_report(tmp_path, family, {"large": graph}).read_text()
    assert "<h2>Architectures</h2>" in page
    assert "<td>small</td><td>mobilevit_demo</td><td>48</td><td>87.50</td>" in page
    assert "0.0800 ± 0.0200" in page
    files = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert files == NAMES - {"front_bits"} | {"front_bits_large", "front_bits_small"}
    assert FrontDocument.from_dict(family.to_dict()).architectures == family.architectures
