"""What the panels of a front share: limits, baselines, the knee, the line of the best, the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evoquant.report.style import ARCHITECTURES, FAINT, INK, MUTED, ORANGE, VERMILLION, Point, measure, use_log_scale
from evoquant.types.front import FrontDocument, ParetoPoint

Position: TypeAlias = Callable[[ParetoPoint], Point | None]

_MARKERS = "sD^vPX<>ph"


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a plane that a panel shows: what holds the given points, and as much again on every side."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[Point], *, least: Point = (0.0, 0.0)) -> Window:
        """The window of these points; it extends at least by ``least`` beyond them."""
        sides = []
        for axis in (0, 1):
            values = [point[axis] for point in points] or [-math.inf, math.inf]
            span = max(max(values) - min(values), least[axis]) if points else 0.0
            sides.append((min(values) - span, max(values) + span))
        return cls(sides[0], sides[1])

    def holds(self, point: Point) -> bool:
        """Whether the point lies in it."""
        return self.x[0] <= point[0] <= self.x[1] and self.y[0] <= point[1] <= self.y[1]


def pair_of(x: str, y: str) -> Position:
    """Where a point lies in the plane of two objectives, in the units shown; None if it lacks one of them."""

    def position(point: ParetoPoint) -> Point | None:
        return shown(point.objectives, x, y)

    return position


def shown(values: Mapping[str, float], x: str, y: str) -> Point | None:
    """Two objectives in the units shown; None if one is missing or not finite."""
    if x not in values or y not in values:
        return None
    pair = (values[x] * measure(x).factor, values[y] * measure(y).factor)
    return pair if all(map(math.isfinite, pair)) else None


def positions(points: Iterable[ParetoPoint], position: Position) -> list[Point]:
    """Where these points lie; those without a position are left out."""
    return [place for point in points if (place := position(point)) is not None]


def columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """The x and the y of points."""
    return [point[0] for point in points], [point[1] for point in points]


def non_dominated(points: Sequence[Point]) -> list[Point]:
    """Those of the points that no other one undercuts in both coordinates, by increasing x."""
    best: list[Point] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def marks(document: FrontDocument) -> dict[str | None, tuple[str, str]]:
    """Colour and marker of the points of each architecture; of the only one by None."""
    names: list[str | None] = [each.name for each in document.architectures]
    return {name: ARCHITECTURES[index % len(ARCHITECTURES)] for index, name in enumerate(names or [None])}


def draw_front(axes: Axes, document: FrontDocument, position: Position) -> None:
    """Mark every member of the front as its architecture is marked."""
    for name, (colour, marker) in marks(document).items():
        own = positions((point for point in document.front if point.architecture == name), position)
        axes.scatter(*columns(own), s=26, marker=marker, color=colour, edgecolors="white", linewidths=0.6, zorder=4)


def title_of(document: FrontDocument, name: str) -> str:
    """What an axis says of an objective; the divergence of several architectures has their offsets in it."""
    if name == "kl" and document.architectures:
        return "KL + offset: loss above the best FP32 (nats)"
    return measure(name).title


def set_axis(axes: Axes, which: str, title: str, values: Sequence[float]) -> None:
    """Name an axis, choose its scale and leave a margin around the values."""
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(title)
    if not values:
        return
    low, high = min(values), max(values)
    if use_log_scale(axes, which, values):
        margin = (high / low) ** 0.08
        low, high = low / margin, high * margin
    else:
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - margin, high + margin
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def draw_baselines(
    axes: Axes, document: FrontDocument, position: Position, window: Window
) -> list[tuple[str, Point, str]]:
    """Mark every baseline inside the window, write the others above the panel; return the labels to place.

    Those of several architectures are too many to be named: they are hollow, in the colour of their architecture.
    """
    if document.architectures:
        _draw_hollow(axes, document, position, window)
        return []
    labels: list[tuple[str, Point, str]] = []
    far: list[str] = []
    for index, point in enumerate(document.baselines):
        place = position(point)
        if place is None:
            continue
        if window.holds(place):
            marker = _MARKERS[index % len(_MARKERS)]
            axes.scatter(*place, s=34, marker=marker, color=VERMILLION, edgecolors="white", linewidths=0.6, zorder=5)
            labels.append((point.name, place, VERMILLION))
        else:
            far.append(f"{point.name} ({place[0]:.3g}, {place[1]:.3g})")
    if far:
        lines = [", ".join(far[start : start + 3]) for start in range(0, len(far), 3)]
        axes.set_title("outside: " + ",\n".join(lines), loc="right", fontsize=7.5, color=MUTED)
    return labels


def _draw_hollow(axes: Axes, document: FrontDocument, position: Position, window: Window) -> None:
    colours, markers = marks(document), preset_markers(document)
    for point in document.baselines:
        place = position(point)
        if place is not None and window.holds(place):
            colour, _ = colours[point.architecture]
            marker = markers[_preset(point)]
            axes.scatter(*place, s=30, marker=marker, facecolors="white", edgecolors=colour, linewidths=1.1, zorder=3.5)


def preset_markers(document: FrontDocument) -> dict[str, str]:
    """The marker of each preset of several architectures."""
    presets = dict.fromkeys(map(_preset, document.baselines))
    return {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(presets)}


def _preset(point: ParetoPoint) -> str:
    """The preset of a baseline of an architecture: its id without the name of the architecture."""
    return point.id.rpartition(".")[2]


def draw_knee(axes: Axes, document: FrontDocument, position: Position) -> list[tuple[str, Point, str]]:
    """Mark the knee of the front, if there is one; return its label."""
    knee = next((point for point in document.front if point.id == document.knee), None)
    place = None if knee is None else position(knee)
    if place is None:
        return []
    axes.scatter(*place, s=170, marker="*", color=ORANGE, edgecolors=INK, linewidths=0.8, zorder=7)
    return [("knee", place, INK)]


def add_legend(figure: Figure, document: FrontDocument, *, candidates: bool) -> None:
    """Say below the panels what the marks mean."""

    def dot(label: str, marker: str, colour: str, size: float, edge: str = "white") -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=marker, color=colour, markersize=size, markeredgecolor=edge, label=label
        )

    entries = [dot("evaluated", "o", FAINT, 4)] if candidates and document.evaluated else []
    entries += [dot(name or "front", marker, colour, 6) for name, (colour, marker) in marks(document).items()]
    if document.knee is not None:
        entries.append(dot("knee", "*", ORANGE, 12, INK))
    if document.architectures:
        entries += [
            Line2D([], [], linestyle="", marker=marker, color=MUTED, markerfacecolor="white", markersize=6, label=name)
            for name, marker in preset_markers(document).items()
        ]
    elif document.baselines:
        entries.append(dot("baseline", "s", VERMILLION, 6.5))
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8.5)
