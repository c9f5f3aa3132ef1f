"""The report of a search: one HTML file that needs nothing else, and the plots beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import TypeAlias

from evoquant.errors import RunError
from evoquant.report.bits_by_layer import plot_bits_by_layer, plot_front_bits
from evoquant.report.hypervolume import plot_hypervolume
from evoquant.report.objective_pairs import plot_accuracy, plot_objective_pairs
from evoquant.report.style import measure, save
from evoquant.report.tables import architecture_table, embedded_figure, key_table, number, point_table, tile
from evoquant.run import TARGETS
from evoquant.types.front import FrontDocument, ParetoPoint
from evoquant.types.graph import ModelGraph

PLOTS = "plots"
REPORT = "report.html"
COMPARED_WITH = "w8a8"

_TEMPLATE = Path(__file__).with_name("report.html")
_OFFSET = (
    "Offset: cross-entropy of the floating-point model above that of the best one. KL of a point is its divergence "
    "from its own floating-point model plus that offset, which on the same images is the expected loss above the best "
    "floating-point model if the models are calibrated; drops of top-1 are from the best one, too."
)
_CAPTIONS = {
    "objective_pairs": "Each pair of objectives. Grey: evaluated candidates; blue: the front, the line joins members "
    "that are best in the two objectives shown; baselines far outside are written above a panel as (x, y).",
    "accuracy": "Test top-1 with its 95 % interval against each cost. Points whose intervals overlap may be equal; "
    "the paired drop in the table is the sharper comparison. Dashed: the floating-point model.",
    "bits_by_layer": "The knee, layer by layer in order of computation: weight bits up, activation bits down; "
    "colours are roles. A product of two activations has no weights; its second operand is drawn faintly.",
    "front_bits": "Weight and activation bits of every point of the front, layers in order of computation.",
    "hypervolume": "Hypervolume of the front after each generation, on a scale that is fixed early in the run.",
}
Graphs: TypeAlias = Mapping[str | None, ModelGraph]
NO_GRAPHS: Graphs = {}

_STATUS = {
    "done": "finished",
    "interrupted": "interrupted: this is the front found until then",
    "infeasible": "no candidate meets the constraints: the best one found is shown",
}


def write_plots(folder: Path, document: FrontDocument, graphs: Graphs = NO_GRAPHS) -> dict[str, Path]:
    """Write the plots of a front into ``folder/plots``.

    Args:
        folder: The run folder.
        document: The front.
        graphs: By architecture (None where there is only one model), give roles and blocks to the plots of bits;
            without one: layers in the order of the plan, in one colour.

    Returns:
        The PNG files by name, with bits of the front for each architecture; without a front only the hypervolume.

    Raises:
        RunError: If a file cannot be written.
    """
    figures = {}
    if document.front:
        knee = document.point("knee") if document.knee is not None else document.front[0]
        title = f"{document.model}: {'the knee, ' if document.knee is not None else ''}{knee.id} · {knee.name}"
        figures = {
            "objective_pairs": plot_objective_pairs(document),
            "accuracy": plot_accuracy(document),
            "bits_by_layer": plot_bits_by_layer(knee, graphs.get(knee.architecture), title=title),
            **{
                "front_bits" if name is None else f"front_bits_{name}": plot_front_bits(part, graphs.get(name))
                for name, part in _parts(document)
            },
        }
    figures["hypervolume"] = plot_hypervolume(document)
    try:
        return {name: save(figure, folder / PLOTS / f"{name}.png") for name, figure in figures.items()}
    except OSError as error:
        raise RunError(f"Cannot write plots to {folder / PLOTS}: {error}.") from error


def _parts(document: FrontDocument) -> Iterator[tuple[str | None, FrontDocument]]:
    """The front of each architecture that is on it, by its name; the whole, by None, where there is only one."""
    if not document.architectures:
        yield None, document
    for each in document.architectures:
        points = tuple(point for point in document.front if point.architecture == each.name)
        if points:
            yield each.name, replace(document, model=each.name, front=points)


def write_report(
    folder: Path, document: FrontDocument, graphs: Graphs = NO_GRAPHS, *, latency_kind: str | None = None
) -> Path:
    """Write the plots of a front and ``report.html``, which holds them.

    Args:
        folder: The run folder.
        document: The front; of the fronts of other devices in it the page has links to their reports.
        graphs: See ``write_plots``.
        latency_kind: ``measured`` or ``predicted``; None: what the provenance says under ``latency_kind``.

    Returns:
        The HTML file.

    Raises:
        RunError: If a file cannot be written.
    """
    plots = write_plots(folder, document, graphs)
    try:
        page = _page(document, plots, latency_kind or str(document.provenance.get("latency_kind", "")))
        target = folder / REPORT
        draft = target.with_name(f".{REPORT}.{os.getpid()}")
        try:
            draft.write_text(page, encoding="utf-8")
            return draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"Cannot write the report to {folder}: {error}.") from error


def _page(document: FrontDocument, plots: dict[str, Path], latency_kind: str) -> str:
    knee = next((point for point in document.front if point.id == document.knee), None)
    images = max((point.test.images for point in document.front if point.test is not None), default=0)
    note = f"Top-1 on {images} test images, with 95 % intervals; drops are paired with the floating-point model."
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{document.model} on {document.device} · evoquant"),
        heading=escape(f"{document.model} on {document.device}"),
        subtitle=escape(_subtitle(document)),
        verdict=escape(document.verdict),
        tiles="".join(_tiles(document, knee)),
        comparison=point_table(document, [*document.baselines, *([knee] if knee else [])]),
        comparison_note=escape(note if images else "No point was judged on test images."),
        front=point_table(document, document.front),
        architectures=_architectures(document),
        devices=_devices(document),
        figures="\n".join(embedded_figure(path, _caption(name)) for name, path in plots.items()),
        caveats="".join(f"<li>{escape(text)}</li>" for text in _caveats(document, latency_kind)),
        provenance=key_table(document.provenance),
    )


def _caption(plot: str) -> str:
    kind = "front_bits" if plot.startswith("front_bits_") else plot
    return _CAPTIONS[kind]


def _architectures(document: FrontDocument) -> str:
    """The architectures that share the front, and where their floating-point models stand."""
    if not document.architectures:
        return ""
    return f"<h2>Architectures</h2>\n{architecture_table(document)}\n<p>{escape(_OFFSET)}</p>\n\n"


def _devices(document: FrontDocument) -> str:
    """The fronts of the other devices of the run, with links to their reports."""
    if not document.other_targets:
        return ""
    rows = "".join(
        f'<li><a href="{TARGETS}/{escape(other.device)}/{REPORT}">{escape(other.device)}</a> '
        f"({escape(str(other.provenance.get('latency_kind', '')))} latency): {escape(other.verdict)}</li>"
        for other in document.other_targets
    )
    return f"<h2>Other devices of this run</h2>\n<ul>{rows}</ul>\n\n"


def _subtitle(document: FrontDocument) -> str:
    stopped = f", {document.stopped} stopped early" if document.stopped else ""
    parts = [
        f"Search {_STATUS.get(document.status, document.status)}",
        f"{document.evaluations} evaluations ({document.failures} failed{stopped})",
        f"{document.images_evaluated:,} images evaluated",
        f"{document.seconds / 60:.1f} minutes",
    ]
    return " · ".join(parts)


def _tiles(document: FrontDocument, knee: ParetoPoint | None) -> Iterator[str]:
    yield tile(str(len(document.front)), "points of the front")
    yield tile(f"{document.hypervolume:.3f}", "hypervolume, share of the box")
    if knee is None:
        return
    reference = next((point for point in document.baselines if point.id == COMPARED_WITH), None)
    if knee.test is not None:
        yield tile(f"{knee.test.top1:.1f} %", f"test top-1 of the knee, {_against_float(knee.test.drop_pp)}")
    for name in (name for name in document.objectives if name not in ("kl", "accuracy_drop_pp")):
        value = knee.objectives.get(name)
        against = None if reference is None else reference.objectives.get(name)
        change = f"{100 * (value / against - 1):+.0f} % against {COMPARED_WITH}" if value and against else "of the knee"
        yield tile(number(name, value), f"{measure(name).short}, {change}")


def _against_float(drop_pp: float) -> str:
    return f"{abs(drop_pp):.2f} points {'below' if drop_pp >= 0 else 'above'} FP32"


def _caveats(document: FrontDocument, latency_kind: str) -> Iterator[str]:
    yield (
        "Both operands of every convolution, linear layer and attention product are quantized. Normalisations, softmax "
        "internals, element-wise operations and residual additions stay in floating point unless the experiment says "
        "integer_only."
    )
    if latency_kind:
        told = document.provenance.get("latency")
        if told is None:
            told = (
                "each operation is timed alone on this machine's kernels and the times are summed"
                if latency_kind == "measured"
                else "they come from a model of the device and were not measured on it"
            )
        yield f"Latencies are {latency_kind}: {told}."
    yield "Energies come from a model with published constants; they rank plans and are no measurement."
    yield (
        "The search ranks candidates on the selection images, so figures on these (KL, selection drop) flatter what "
        "was chosen. Judge by the test columns."
    )
    halves = [(point.test.ci95[1] - point.test.ci95[0]) / 2 for point in document.front if point.test is not None]
    if halves:
        yield (
            f"With this many test images the 95 % interval of one top-1 is about ±{max(halves):.1f} points wide; "
            "smaller differences between points are told apart by the paired drop only."
        )
    untested = sum(point.test is None for point in document.front)
    if untested:
        yield f"{untested} of {len(document.front)} points of the front were not judged on test images."
    if document.failures:
        yield f"{document.failures} candidates failed; the journal has the reasons."
    if document.status in ("interrupted", "infeasible"):
        yield f"The search was not completed: {_STATUS[document.status]}."
