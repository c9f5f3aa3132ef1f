"""How all figures look: colours for colour-blind readers, names of objectives, labels that do not overlap.

Figures are made without pyplot, so they need no display and leave no global state.

References:
    M. Okabe, K. Ito: Color Universal Design, https://jfly.uni-koeln.de/color/ (the eight colours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
ARCHITECTURES = ((BLUE, "o"), (GREEN, "D"), (PURPLE, "s"), (SKY, "^"), (BLACK, "v"), (YELLOW, "P"))
"""Colour and marker of each architecture of a front; a single one has the first."""
INK, MUTED, FAINT = "#222222", "#767676", "#C9C9C9"
DPI = 150
_DECADES_FOR_LOG = 0.8

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measure:
    """How one objective is shown.

    Attributes:
        title: Its name with the unit shown.
        short: The same, short enough for the head of a table.
        factor: From the stored unit to the unit shown.
    """

    title: str
    short: str
    factor: float = 1.0


_MEASURES = {
    "kl": Measure("KL divergence from FP32 (nats)", "KL (nats)"),
    "latency_ms": Measure("Latency of one image (ms)", "Latency (ms)"),
    "energy_mj": Measure("Energy of one image (mJ)", "Energy (mJ)"),
    "memory_mb": Measure("Weights and peak activations (MB)", "Memory (MB)"),
    "accuracy_drop_pp": Measure("Top-1 drop on selection images (points)", "Drop (points)"),
    "model_size_bytes": Measure("Packed weights (MB)", "Weights (MB)", 1e-6),
    "peak_activation_bytes": Measure("Peak activations (MB)", "Activations (MB)", 1e-6),
    "average_bits": Measure("Bits per weight", "Bits/weight"),
}


def measure(name: str) -> Measure:
    """How the named objective is shown; an unknown one by its name."""
    return _MEASURES.get(name, Measure(name, name))


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of this size in inches that can be drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": "evoquant"})
    return path


def plain(axes: Axes) -> None:
    """Take away what carries no information: two of the spines, heavy grid lines, loud labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.grid(visible=True, color="#ECECEC", linewidth=0.7)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9.5)
        label.set_color(INK)


def use_log_scale(axes: Axes, which: str, values: Sequence[float]) -> bool:
    """Make an axis logarithmic if the values are positive and spread widely; tell whether they are."""
    if not values or min(values) <= 0 or max(values) / min(values) < 10**_DECADES_FOR_LOG:
        return False
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if max(values) / min(values) < 200 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    return True


_OFFSETS = [
    (dx * reach, dy * reach)
    for reach in (9, 15, 23, 33)
    for dx, dy in ((1, 0.6), (1, -0.9), (-1, 0.6), (-1, -0.9), (0, 1.1), (0, -1.3), (1.3, 0), (-1.3, 0))
]


def place_labels(
    axes: Axes, labels: Sequence[tuple[str, Point, str]], *, obstacles: Sequence[Point] = (), size: float = 8.5
) -> list[Annotation]:
    """Write each text beside its point, where it covers least of other labels and of the obstacles.

    Args:
        axes: Where to write; its limits must be final, and its figure laid out by ``draw_without_rendering``.
        labels: (text, point in data coordinates, colour).
        obstacles: Points that should stay visible.
        size: Of the font, in points.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        return []
    canvas = figure.canvas
    renderer = canvas.get_renderer() if isinstance(canvas, FigureCanvasAgg) else None  # type: ignore[no-untyped-call]
    inside = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    dots = [axes.transData.transform(point) for point in (*obstacles, *(point for _, point, _ in labels))]
    dot = 4.0 * figure.dpi / 72
    taken_dots = [Bbox.from_bounds(x - dot / 2, y - dot / 2, dot, dot) for x, y in dots]
    written = []
    for text, point, colour in labels:
        note = axes.annotate(text, point, (0, 0), textcoords="offset points", fontsize=size, color=colour, zorder=9)
        note.set_in_layout(False)
        note.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.85)])
        costs = []
        for dx, dy in _OFFSETS:
            note.set_position((dx, dy))
            note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
            note.set_verticalalignment("center")
            box = note.get_window_extent(renderer)
            outside = box.width * box.height - _shared(box, inside)
            cost = 50 * outside + 20 * sum(_shared(box, other) for other in taken)
            costs.append(cost + 3 * sum(_shared(box, other) for other in taken_dots) + 0.5 * (dx**2 + dy**2))
        dx, dy = _OFFSETS[costs.index(min(costs))]
        note.set_position((dx, dy))
        note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        if dx**2 + dy**2 > 15**2:
            axes.annotate(
                "",
                point,
                (dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.7},
            )
        taken.append(note.get_window_extent(renderer))
        written.append(note)
    return written


def _shared(first: Bbox, second: Bbox) -> float:
    """Area that two boxes share."""
    both = Bbox.intersection(first, second)
    return 0.0 if both is None else float(both.width * both.height)
