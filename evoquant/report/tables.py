"""Tables and figures of the report as HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from evoquant.report.style import measure
from evoquant.types.front import FloatAccuracy, FrontDocument, ParetoPoint

_DIGITS = {"average_bits": ".2f", "model_size_bytes": ".3f", "memory_mb": ".3f"}
_BESIDE = ("model_size_bytes", "average_bits")
NOTHING = "\N{EN DASH}"


def shown_figures(document: FrontDocument) -> list[str]:
    """Names of the figures that tables show: the objectives, and beside them size and bits if all points have them."""
    points = (*document.front, *document.baselines)
    beside = [name for name in _BESIDE if points and all(name in point.objectives for point in points)]
    return [*document.objectives, *(name for name in beside if name not in document.objectives)]


def number(name: str, value: float | None) -> str:
    """One figure in the unit shown; a dash if there is none."""
    return NOTHING if value is None else format(value * measure(name).factor, _DIGITS.get(name, ".4g"))


def tested(point: ParetoPoint) -> str:
    """Test top-1 with its interval, in percent."""
    if point.test is None:
        return NOTHING
    return f"{point.test.top1:.2f} [{point.test.ci95[0]:.2f}, {point.test.ci95[1]:.2f}]"


def drop(point: ParetoPoint) -> str:
    """Paired drop on the test images with its standard error, in points."""
    return NOTHING if point.test is None else f"{point.test.drop_pp:.2f} ± {point.test.drop_stderr_pp:.2f}"


def point_table(document: FrontDocument, points: Sequence[ParetoPoint]) -> str:
    """One row for each point; the row of the knee stands out."""
    names = shown_figures(document)
    head = ["Point", "Name", *(measure(name).short for name in names), "Test top-1 (%) [95 %]", "Drop (points)"]
    rows = [
        (
            "knee" if point.id == document.knee else "",
            [
                f"{point.id} ★" if point.id == document.knee else point.id,
                point.name,
                *(number(name, point.objectives.get(name)) for name in names),
                tested(point),
                drop(point),
            ],
        )
        for point in points
    ]
    return _table(head, rows)


def architecture_table(document: FrontDocument) -> str:
    """One row for each architecture of the front."""
    head = ["Architecture", "Model", "Pixels", "Float top-1 (%), selection", "Float top-1 (%), test"]
    head += ["Cross-entropy (nats)", "Offset (nats)", "Offset on test", "Evaluations", "Points"]
    rows = [
        (
            "",
            [
                each.name,
                each.model,
                str(each.image_size),
                f"{each.selection.top1:.2f}",
                NOTHING if each.test is None else f"{each.test.top1:.2f}",
                f"{each.selection.cross_entropy:.4f}",
                _offset(each.selection),
                NOTHING if each.test is None else _offset(each.test),
                str(each.evaluations),
                str(sum(point.architecture == each.name for point in document.front)),
            ],
        )
        for each in document.architectures
    ]
    return _table(head, rows)


def _offset(own: FloatAccuracy) -> str:
    return f"{own.offset:.4f} ± {own.offset_stderr:.4f}"


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    parts = ["<table><thead><tr>", *(f"<th>{escape(cell)}</th>" for cell in head), "</tr></thead><tbody>"]
    for kind, cells in rows:
        opened = f'<tr class="{kind}">' if kind else "<tr>"
        parts += [opened, *(f"<td>{escape(cell)}</td>" for cell in cells), "</tr>"]
    return "".join([*parts, "</tbody></table>"])


def key_table(values: Mapping[str, object]) -> str:
    """Nested values, one row for each leaf, named by its path."""
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in _leaves(values, ""))
    return f'<table class="plain"><tbody>{rows}</tbody></table>'


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value))
    else:
        yield path, NOTHING if value is None else str(value)


def tile(value: str, label: str) -> str:
    """A figure that meets the eye first."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def embedded_figure(path: Path, caption: str) -> str:
    """A PNG file inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
