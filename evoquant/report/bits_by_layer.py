"""Which layer has how many bits: bars for one plan, a heat map for the whole front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from evoquant.report.style import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    new_figure,
    plain,
)
from evoquant.types.front import FrontDocument, ParetoPoint
from evoquant.types.graph import ModelGraph, OpKind
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig, QuantizationScheme

_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "attention": (BLUE, ("attention_qkv", "attention_qk", "attention_av", "attention_out")),
    "mlp": (SKY, ("mlp_in", "mlp_out")),
    "bridge": (ORANGE, ("bridge",)),
    "depthwise": (PURPLE, ("depthwise",)),
    "pointwise": (GREEN, ("pointwise",)),
    "conv": (YELLOW, ("conv",)),
    "gate": (VERMILLION, ("gate",)),
    "stem, head": (BLACK, ("stem", "head")),
}
_HATCHES = {
    QuantizationScheme.LOG2: "////",
    QuantizationScheme.POWER_OF_TWO: "....",
    QuantizationScheme.TERNARY: "xxxx",
}
_SHOWN_FLOAT_BITS = 20
_FAINT_ALPHA = 0.3
_MOST_NAMED_LAYERS = 110
_ROW_HEIGHT, _LEAST_MAP_HEIGHT, _MOST_MAP_HEIGHT = 0.2, 0.9, 7.0
_MOST_NAMED_ROWS = 46


def plot_bits_by_layer(point: ParetoPoint, graph: ModelGraph | None = None, *, title: str = "") -> Figure:
    """Draw the weight bits of every layer upwards and its activation bits downwards, coloured by role.

    Args:
        point: A member of the front, or a baseline.
        graph: Gives roles, blocks and depth; None: one colour, in the order of the plan.
        title: Above the figure; empty: the id and name of the point.
    """
    names = _layers(point, graph)
    figure = new_figure(max(7.0, 0.145 * len(names) + 1.6), 5.2)
    axes = figure.subplots()
    colours = [_colour(name, graph) for name in names]
    configs = [point.plan[name] for name in names]
    for sign, side in ((1, "weight"), (-1, "activation")):
        for x, (config, colour) in enumerate(zip(configs, colours, strict=True)):
            _draw_bar(axes, x, sign, side, config, colour, is_product=_is_product(names[x], graph))
    _decorate_bars(axes, names, graph, max(_height(config) for config in configs) if configs else 8)
    axes.set_title(title or f"{point.id} · {point.name}", loc="left", fontsize=11.5, color=INK)
    handles = [Patch(color=colour, label=family) for family, (colour, _) in _FAMILIES.items() if colour in colours]
    present = {scheme for config in configs for scheme in (config.weight_scheme, config.activation_scheme)}
    handles += [
        Patch(facecolor="white", edgecolor=INK, hatch=hatch, label=scheme.value.replace("_", " "))
        for scheme, hatch in _HATCHES.items()
        if scheme in present
    ]
    if any(_is_product(name, graph) for name in names):
        handles.append(Patch(color=BLUE, alpha=_FAINT_ALPHA, label="second operand of a product"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) <= 9 else -(-len(handles) // 2),
        frameon=False,
        fontsize=8.5,
    )
    return figure


def plot_front_bits(document: FrontDocument, graph: ModelGraph | None = None) -> Figure:
    """Draw the weight and activation bits of every member of the front as two heat maps, layers by depth.

    Args:
        document: The front.
        graph: Gives roles and blocks; None: layers in the order of the plan.
    """
    points = [point for point in document.front if point.plan]
    names = _layers(points[0], graph) if points else []
    height = min(max(_ROW_HEIGHT * len(points), _LEAST_MAP_HEIGHT), _MOST_MAP_HEIGHT)
    figure = new_figure(max(7.0, 0.145 * len(names) + 2.6), 2 * height + 3.0)
    figure.suptitle(f"{document.model}: bits of every layer, most accurate point first", fontsize=11.5, color=INK)
    if not points:
        figure.text(0.5, 0.5, "the front is empty", ha="center", color=MUTED)
        return figure
    strip, above, below = figure.subplots(3, 1, sharex=True, height_ratios=[0.28, height, height])
    _draw_roles(strip, names, graph)
    for axes, side in ((above, "weight"), (below, "activation")):
        _draw_heat_map(axes, document, points, names, side)
        _draw_block_lines(axes, names, graph)
    _name_layers(below, names, graph)
    return figure


def _layers(point: ParetoPoint, graph: ModelGraph | None) -> list[str]:
    return list(point.plan) if graph is None else [op.name for op in graph.ops if op.name in point.plan]


def _colour(name: str, graph: ModelGraph | None) -> str:
    role = None if graph is None or name not in graph.op else graph.op[name].role.value
    return next((colour for colour, roles in _FAMILIES.values() if role in roles), BLUE if graph is None else MUTED)


def _is_product(name: str, graph: ModelGraph | None) -> bool:
    return graph is not None and name in graph.op and graph.op[name].kind is OpKind.MATMUL


def _height(config: LayerQuantConfig) -> int:
    return max(min(bits, _SHOWN_FLOAT_BITS) for bits in (config.weight_bits, config.activation_bits))


def _draw_bar(
    axes: Axes, x: int, sign: int, side: str, config: LayerQuantConfig, colour: str, *, is_product: bool
) -> None:
    bits = config.weight_bits if side == "weight" else config.activation_bits
    scheme = config.weight_scheme if side == "weight" else config.activation_scheme
    is_faint = bits == FLOAT_BITS or (side == "weight" and is_product)
    axes.bar(
        x,
        sign * min(bits, _SHOWN_FLOAT_BITS),
        width=0.82,
        color=colour,
        alpha=_FAINT_ALPHA if is_faint else 1.0 if side == "weight" else 0.72,
        hatch=_HATCHES.get(scheme),
        edgecolor="white",
        linewidth=0.0,
    )


def _decorate_bars(axes: Axes, names: Sequence[str], graph: ModelGraph | None, highest: int) -> None:
    plain(axes)
    axes.grid(visible=False, axis="x")
    axes.axhline(0, color=INK, linewidth=0.8)
    ticks = [bits for bits in (2, 4, 6, 8, 12, 16, _SHOWN_FLOAT_BITS) if bits <= highest]
    labels = ["float" if bits == _SHOWN_FLOAT_BITS else str(bits) for bits in ticks]
    axes.set_yticks([*(-bits for bits in reversed(ticks)), 0, *ticks], [*reversed(labels), "0", *labels])
    axes.set_ylabel("activation bits  |  weight bits")
    axes.set_xlim(-0.8, max(len(names), 1) - 0.2)
    for start, _ in _block_starts(names, graph)[1:]:
        axes.axvline(start - 0.5, color=FAINT, linewidth=0.8, zorder=0)
    _name_layers(axes, names, graph)


def _name_layers(axes: Axes, names: Sequence[str], graph: ModelGraph | None) -> None:
    """Names of the layers, or of the blocks where there are too many."""
    starts = _block_starts(names, graph)
    if len(names) <= _MOST_NAMED_LAYERS:
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=6.5)
    else:
        axes.set_xticks([start for start, _ in starts], [_short(block) for _, block in starts], rotation=90, fontsize=7)
    axes.tick_params(axis="x", length=2, colors=MUTED)


def _draw_block_lines(axes: Axes, names: Sequence[str], graph: ModelGraph | None) -> None:
    for start, _ in _block_starts(names, graph)[1:]:
        axes.axvline(start - 0.5, color="white", linewidth=1.6)
        axes.axvline(start - 0.5, color=MUTED, linewidth=0.5)


def _block_starts(names: Sequence[str], graph: ModelGraph | None) -> list[tuple[int, str]]:
    starts: list[tuple[int, str]] = []
    for index, name in enumerate(names):
        block = graph.op[name].block if graph is not None and name in graph.op else name.rsplit(".", 1)[0]
        if not starts or starts[-1][1] != block:
            starts.append((index, block))
    return starts


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _draw_roles(axes: Axes, names: Sequence[str], graph: ModelGraph | None) -> None:
    colours = [_colour(name, graph) for name in names]
    axes.bar(range(len(names)), 1, width=1.0, color=colours, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    handles = [Patch(color=colour, label=family) for family, (colour, _) in _FAMILIES.items() if colour in colours]
    if handles:
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=8,
            frameon=False,
            fontsize=8,
            borderpad=0.1,
        )


def _draw_heat_map(
    axes: Axes, document: FrontDocument, points: Sequence[ParetoPoint], names: Sequence[str], side: str
) -> None:
    bits = np.array([[getattr(point.plan[name], f"{side}_bits") for name in names] for point in points]).reshape(
        len(points), len(names)
    )
    present = sorted({int(value) for value in bits.flat})
    if present:
        colours = [FAINT if value == FLOAT_BITS else colormaps["viridis"](_shade(value)) for value in present]
        level = np.searchsorted(present, bits)
        norm = BoundaryNorm(np.arange(len(present) + 1) - 0.5, len(present))
        image = axes.imshow(level, aspect="auto", cmap=ListedColormap(colours), norm=norm, interpolation="nearest")
        bar = axes.figure.colorbar(image, ax=axes, ticks=range(len(present)), pad=0.012, aspect=9, fraction=0.03)
        bar.ax.set_yticklabels(["float" if value == FLOAT_BITS else str(value) for value in present], fontsize=8)
        bar.ax.tick_params(length=0)
        bar.minorticks_off()
        bar.outline.set_visible(False)
    for row in (row for row, point in enumerate(points) if point.id == document.knee):
        axes.add_patch(Rectangle((-0.5, row - 0.5), len(names), 1, fill=False, edgecolor=INK, linewidth=1.4, zorder=5))
    step = -(-len(points) // _MOST_NAMED_ROWS)
    named = [row for row, point in enumerate(points) if row % step == 0 or point.id == document.knee]
    labels = [f"{points[row].id} ★" if points[row].id == document.knee else points[row].id for row in named]
    axes.set_yticks(named, labels, fontsize=7.5)
    axes.set_ylabel(f"{side} bits", fontsize=9.5, color=INK)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="x", labelbottom=side == "activation")
    axes.spines[:].set_visible(False)


def _shade(bits: int) -> float:
    """Place on the colour scale: 1 bit is darkest, 8 bits bright, 16 brightest."""
    return min((bits - 1) / 8.0, 1.0) if bits <= 8 else 1.0
