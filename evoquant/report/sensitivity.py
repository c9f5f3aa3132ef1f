"""Which part of a network suffers from few bits: groups by depth, coloured by the kind of their block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evoquant.report.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, YELLOW, new_figure, plain, use_log_scale

_COLOURS = (BLUE, ORANGE, GREEN, SKY, PURPLE, YELLOW)


def plot_sensitivity(document: Mapping[str, Any], order: Sequence[str]) -> Figure:
    """Draw the divergence of every probed group as a bar, and what the Fisher form says of it as a line.

    Args:
        document: What ``evoquant sensitivity --json`` prints.
        order: Names of all groups in the order of computation.
    """
    groups = {entry["group"]: entry for entry in document["groups"]}
    entries = [groups[name] for name in order if name in groups]
    kinds = list(dict.fromkeys(entry["block_kind"] for entry in entries))
    colours = {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(kinds)}
    figure = new_figure(max(7.0, 0.16 * len(entries) + 1.6), 4.6)
    axes = figure.subplots()
    axes.bar(range(len(entries)), [entry["kl"] for entry in entries], color=[colours[e["block_kind"]] for e in entries])
    for place, entry in enumerate(entries):
        axes.hlines(entry["fisher"], place - 0.4, place + 0.4, color=INK, linewidth=1.2)
    plain(axes)
    use_log_scale(axes, "y", [value for entry in entries for value in (entry["kl"], entry["fisher"])])
    axes.set_xticks(range(len(entries)), [entry["group"] for entry in entries], rotation=90, fontsize=6.5)
    axes.set_xlim(-0.7, len(entries) - 0.3)
    axes.set_ylabel("KL divergence of this group alone (nats)")
    precision = f"W{document['weight_bits']}A{document['activation_bits']}"
    axes.set_title(f"{document['model']}: one group at a time at {precision}", loc="left", fontsize=11.5, color=INK)
    handles: list[Patch | Line2D] = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    handles.append(Line2D([], [], color=INK, linewidth=1.2, label="by the Fisher form"))
    axes.legend(
        handles=handles, frameon=False, fontsize=8.5, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1.06)
    )
    return figure
