"""How the front grew over the search, beside what other ways to spend the same reach."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evoquant.report.style import BLUE, INK, MUTED, ORANGE, new_figure, plain
from evoquant.types.front import FrontDocument


def plot_hypervolume(document: FrontDocument) -> Figure:
    """Draw the hypervolume after each generation over the images and over the time of its evaluations.

    Comparisons stand at the images that they took. A front without these costs is drawn over its evaluations.
    """
    images, history = document.hypervolume_images, document.hypervolume_history
    figure = new_figure(9.6 if images else 6.6, 4.0)
    figure.suptitle(f"{document.model} on {document.device}", x=0.02, ha="left", fontsize=11.5, color=INK)
    if not history:
        axes = figure.subplots()
        plain(axes)
        axes.text(0.5, 0.5, "no generation was finished", transform=axes.transAxes, ha="center", color=MUTED)
        return figure
    counts, values = zip(*history, strict=True)
    if not images:
        _draw(figure.subplots(), counts, values, "Evaluations")
        return figure
    over_images, over_time = figure.subplots(1, 2, sharey=True)
    _draw(over_images, images, values, "Images evaluated, sensitivities included")
    _draw(over_time, document.hypervolume_seconds, values, "Time of evaluations (s), all workers together")
    over_time.set_ylabel("")
    for number, comparison in enumerate(document.comparisons):
        over_images.scatter(comparison.images, comparison.hypervolume, s=26, marker="D", color=ORANGE, zorder=2)
        over_images.annotate(
            comparison.name,
            (comparison.images, comparison.hypervolume),
            (5, -10 if number % 2 else 4),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    return figure


def _draw(axes: Axes, places: Sequence[float], values: Sequence[float], label: str) -> None:
    plain(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("Hypervolume (share of the box)")
    axes.step(places, values, where="post", color=BLUE, linewidth=1.4)
    axes.scatter(places, values, s=16, color=BLUE, zorder=3)
    axes.set_xlim(0, 1.06 * max(places))
    axes.annotate(
        f"{values[-1]:.4f}",
        (places[-1], values[-1]),
        (0, 7),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=INK,
    )
    axes.margins(y=0.12)
