"""The front in the planes of two objectives, and its test accuracy against each cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evoquant.report.panels import (
    Window,
    add_legend,
    columns,
    draw_baselines,
    draw_front,
    draw_knee,
    marks,
    non_dominated,
    pair_of,
    positions,
    set_axis,
    shown,
    title_of,
)
from evoquant.report.style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    VERMILLION,
    Point,
    measure,
    new_figure,
    place_labels,
    plain,
)
from evoquant.types.front import FrontDocument, ParetoPoint

_MOST_PAIRS = 6
_MOST_COLUMNS = 3
_ACCURACY = ("kl", "accuracy_drop_pp")
_LEAST_ACCURACY_MARGIN = 2.0


def plot_objective_pairs(document: FrontDocument) -> Figure:
    """Draw one panel for each pair of objectives; of many, those with the first objective.

    Grey: every evaluated candidate. Blue, or the colour of its architecture: the front, with a line through those
    members that are not dominated in the two objectives of the panel. Star: the knee. Baselines far outside are
    written above the panel.
    """
    names = document.objectives
    pairs = list(combinations(names, 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = pairs[: len(names) - 1]
    count = min(_MOST_COLUMNS, max(len(pairs), 1))
    rows = max(math.ceil(len(pairs) / count), 1)
    figure = new_figure(4.4 * count + 0.3, 3.7 * rows + 1.0)
    panels = figure.subplots(rows, count, squeeze=False).flatten()
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    _set_head(figure, document, f"{len(document.front)} points of the front, {document.evaluations} evaluations")
    add_legend(figure, document, candidates=True)
    _place(figure, [_draw_pair(axes, document, x, y) for axes, (y, x) in zip(panels, pairs, strict=False)])
    return figure


def plot_accuracy(document: FrontDocument) -> Figure:
    """Draw test top-1 with its 95 % interval against each cost, for every point that was tested.

    The dashed line is the floating-point model, where it is among the baselines.
    """
    costs = [name for name in document.objectives if name not in _ACCURACY] or list(document.objectives)
    figure = new_figure(4.4 * len(costs) + 0.3, 4.7)
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    images = {point.test.images for point in (*document.front, *document.baselines) if point.test is not None}
    told = f"test top-1 on {max(images)} images, bars: 95 % interval" if images else "no point was tested"
    _set_head(figure, document, told)
    add_legend(figure, document, candidates=False)
    _place(figure, [_draw_accuracy(axes, document, cost) for axes, cost in zip(panels, costs, strict=True)])
    return figure


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A panel whose labels wait for the layout of the figure."""

    axes: Axes
    labels: list[tuple[str, Point, str]]
    obstacles: list[Point]


def _place(figure: Figure, drawn: list[_Drawn]) -> None:
    figure.draw_without_rendering()
    for panel in drawn:
        place_labels(panel.axes, panel.labels, obstacles=panel.obstacles)


def _set_head(figure: Figure, document: FrontDocument, told: str) -> None:
    figure.suptitle(f"{document.model} on {document.device}: {told}", fontsize=11.5, color=INK)


def _draw_pair(axes: Axes, document: FrontDocument, x: str, y: str) -> _Drawn:
    position = pair_of(x, y)
    grey = [place for values in document.evaluated if (place := shown(values, x, y)) is not None]
    front = positions(document.front, position)
    window = Window.around(grey + front)
    inside = [place for place in positions(document.baselines, position) if window.holds(place)]
    for which, name, axis in (("x", x, 0), ("y", y, 1)):
        set_axis(axes, which, title_of(document, name), [place[axis] for place in grey + front + inside])
    plain(axes)
    axes.scatter(*columns(grey), s=11, color=FAINT, linewidths=0, zorder=2)
    axes.step(*columns(non_dominated(front)), where="post", color=BLUE, linewidth=1.1, alpha=0.55, zorder=3)
    draw_front(axes, document, position)
    labels = draw_baselines(axes, document, position, window) + draw_knee(axes, document, position)
    return _Drawn(axes, labels, front)


def _draw_accuracy(axes: Axes, document: FrontDocument, cost: str) -> _Drawn:
    def position(point: ParetoPoint) -> Point | None:
        if point.test is None or cost not in point.objectives:
            return None
        return point.objectives[cost] * measure(cost).factor, point.test.top1

    front = positions(document.front, position)
    window = Window.around(front, least=(0.0, _LEAST_ACCURACY_MARGIN))
    near = [point for point in document.baselines if (place := position(point)) is not None and window.holds(place)]
    inside = front + positions(near, position)
    bars = [bound for point in (*document.front, *near) if point.test is not None for bound in point.test.ci95]
    set_axis(axes, "x", measure(cost).title, [place[0] for place in inside])
    set_axis(axes, "y", "Top-1 on test images (%)", [*bars, *(place[1] for place in inside)])
    plain(axes)
    colours = {name: colour for name, (colour, _) in marks(document).items()}
    for points, is_front in ((document.front, True), (near, False)):
        for point in points:
            place = position(point)
            if place is not None and point.test is not None:
                has_colour = is_front or document.architectures
                colour = colours[point.architecture] if has_colour else VERMILLION
                axes.vlines(place[0], *point.test.ci95, color=colour, alpha=0.4, linewidth=1.4, zorder=3)
    draw_front(axes, document, position)
    for point in document.baselines:
        if point.id == "fp32" and point.test is not None:
            axes.axhline(point.test.top1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    labels = draw_baselines(axes, document, position, window) + draw_knee(axes, document, position)
    return _Drawn(axes, labels, front)
