"""How the front grew over the search."""

from __future__ import annotations

from matplotlib.figure import Figure

from evoquant.report.style import BLUE, INK, MUTED, new_figure, plain
from evoquant.types.front import FrontDocument


def plot_hypervolume(document: FrontDocument) -> Figure:
    """Draw the hypervolume after each generation over the number of evaluations."""
    figure = new_figure(6.6, 4.0)
    axes = figure.subplots()
    plain(axes)
    history = document.hypervolume_history
    axes.set_xlabel("Evaluations")
    axes.set_ylabel("Hypervolume (share of the box)")
    axes.set_title(f"{document.model} on {document.device}", loc="left", fontsize=11.5, color=INK)
    if not history:
        axes.text(0.5, 0.5, "no generation was finished", transform=axes.transAxes, ha="center", color=MUTED)
        return figure
    counts, values = zip(*history, strict=True)
    axes.step(counts, values, where="post", color=BLUE, linewidth=1.4)
    axes.scatter(counts, values, s=16, color=BLUE, zorder=3)
    span = max(values) - min(values) or abs(max(values)) or 1.0
    axes.set_ylim(min(values) - 0.1 * span, max(values) + 0.16 * span)
    axes.annotate(
        f"{values[-1]:.4f}",
        (counts[-1], values[-1]),
        (0, 7),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=INK,
    )
    return figure
