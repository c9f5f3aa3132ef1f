from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from evoquant.report import plot_accuracy, plot_bits_by_layer, plot_front_bits, plot_hypervolume, plot_objective_pairs
from evoquant.report.panels import Window, non_dominated
from evoquant.types.front import FrontDocument
from evoquant.types.graph import ModelGraph


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def labels(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]


def inked(figure: Figure) -> float:
    """Share of pixels that are not white."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return float((pixels < 250).any(axis=-1).mean())


@pytest.fixture(scope="module")
def pairs(document: FrontDocument) -> Figure:
    return plot_objective_pairs(document)


@pytest.fixture(scope="module")
def accuracy(document: FrontDocument) -> Figure:
    return plot_accuracy(document)


def test_every_pair_of_objectives_has_a_panel(pairs: Figure) -> None:
    shown = panels(pairs)
    assert len(shown) == 6
    assert {axes.get_ylabel() for axes in shown[:3]} == {"KL divergence from FP32 (nats)"}
    assert [axes.get_xlabel() for axes in shown[:3]] == [
        "Latency of one image (ms)",
        "Energy of one image (mJ)",
        "Weights and peak activations (MB)",
    ]
    assert all(axes.get_yscale() == "log" for axes in shown[:3])


def test_the_front_the_knee_and_the_baselines_are_where_they_belong(document: FrontDocument, pairs: Figure) -> None:
    axes = panels(pairs)[0]
    grey, front, *baselines, knee = (np.asarray(part.get_offsets()) for part in axes.collections)
    assert len(grey) == len(document.evaluated)
    expected = [(point.objectives["latency_ms"], point.objectives["kl"]) for point in document.front]
    assert np.allclose(front, expected)
    chosen = document.point("knee").objectives
    assert np.allclose(knee, [(chosen["latency_ms"], chosen["kl"])])
    assert len(baselines) == 4
    assert "fp32 (8.7, 0)" in axes.get_title(loc="right")
    assert {note.get_text() for note in labels(axes)} == {"w8a8", "w6a6", "w4a8", "w4a4", "knee"}
    low, high = axes.get_xlim()
    assert all(low < x < high for x, _ in [*expected, *grey])


@pytest.mark.parametrize("name", ["pairs", "accuracy"])
def test_labels_do_not_overlap(name: str, request: pytest.FixtureRequest) -> None:
    figure = request.getfixturevalue(name)
    figure.canvas.draw()
    for axes in panels(figure):
        boxes = {note.get_text(): note.get_window_extent() for note in labels(axes)}
        assert boxes
        for (first, box), (second, other) in combinations(boxes.items(), 2):
            assert not box.overlaps(other), f"{first} covers {second}"


def test_accuracy_has_intervals(document: FrontDocument, accuracy: Figure) -> None:
    axes = panels(accuracy)[0]
    bars = [part.get_segments()[0] for part in axes.collections if hasattr(part, "get_segments")]
    point = document.front[0]
    assert point.test is not None
    x = point.objectives["latency_ms"]
    assert any(np.allclose(bar, [(x, point.test.ci95[0]), (x, point.test.ci95[1])]) for bar in bars)
    assert axes.get_ylim()[0] < min(bar[0][1] for bar in bars)
    assert axes.get_ylim()[1] > max(bar[1][1] for bar in bars)


def test_bars_are_bits(document: FrontDocument, graph: ModelGraph) -> None:
    point = document.point("knee")
    axes = panels(plot_bits_by_layer(point, graph))[0]
    heights = [bar.get_height() for bar in axes.patches]
    count = len(graph.ops)
    assert heights[:count] == [point.plan[op.name].weight_bits for op in graph.ops]
    assert heights[count:] == [-point.plan[op.name].activation_bits for op in graph.ops]
    assert axes.get_xticklabels()[0].get_text() == "stem.conv"


def test_colours_are_roles(document: FrontDocument, graph: ModelGraph) -> None:
    axes = panels(plot_bits_by_layer(document.point("w8a8"), graph))[0]
    colours: dict[str, set[object]] = {}
    for op, bar in zip(graph.ops, axes.patches, strict=False):
        colours.setdefault(op.role.value, set()).add(bar.get_facecolor()[:3])
    assert all(len(found) == 1 for found in colours.values())
    assert colours["stem"] == colours["head"]
    assert len({*map(str, colours.values())}) == 6


def test_heat_maps_are_bits(document: FrontDocument, graph: ModelGraph) -> None:
    _, weights, activations, *_ = plot_front_bits(document, graph).axes
    for axes, side in ((weights, "weight_bits"), (activations, "activation_bits")):
        bits = np.array([[getattr(point.plan[op.name], side) for op in graph.ops] for point in document.front])
        levels = np.unique(bits)
        assert np.array_equal(levels[np.asarray(axes.images[0].get_array())], bits)


def test_hypervolume_ends_with_its_value(document: FrontDocument) -> None:
    over_images, over_time = panels(plot_hypervolume(document))[:2]
    for axes, costs in ((over_images, document.hypervolume_images), (over_time, document.hypervolume_seconds)):
        assert labels(axes)[0].get_text() == f"{document.hypervolume:.4f}"
        assert np.array_equal(axes.lines[0].get_xdata(), costs)
    names = [label.get_text() for label in labels(over_images)[1:]]
    assert names == [comparison.name for comparison in document.comparisons]


def test_a_front_of_an_earlier_version_is_drawn_over_evaluations(document: FrontDocument) -> None:
    (axes,) = panels(plot_hypervolume(replace(document, hypervolume_images=())))
    assert np.array_equal(axes.lines[0].get_xdata(), [count for count, _ in document.hypervolume_history])


def bare(document: FrontDocument) -> FrontDocument:
    return replace(
        document, front=(), baselines=(), evaluated=(), knee=None, hypervolume_history=(), hypervolume_images=()
    )


def untested(document: FrontDocument) -> FrontDocument:
    return replace(document, front=tuple(replace(point, test=None) for point in document.front), baselines=())


def single(document: FrontDocument) -> FrontDocument:
    return replace(document, front=document.front[:1], knee="p01", evaluated=(document.front[0].objectives,))


@pytest.mark.parametrize("change", [bare, untested, single])
@pytest.mark.parametrize("plot", [plot_objective_pairs, plot_accuracy, plot_front_bits, plot_hypervolume])
def test_sparse_documents_are_drawn(document: FrontDocument, change, plot) -> None:
    assert inked(plot(replace(change(document), objectives=("kl", "latency_ms")))) > 0.001


@pytest.mark.parametrize("names", [("kl",), ("latency_ms", "my_measure"), ("kl", "latency_ms")])
def test_other_numbers_of_objectives(document: FrontDocument, names: tuple[str, ...]) -> None:
    figure = plot_objective_pairs(replace(document, objectives=names))
    assert len(panels(figure)) == len(names) - 1
    assert inked(figure) > 0.001


POINTS = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=12)


@given(POINTS)
def test_non_dominated_by_definition(points: list[tuple[float, float]]) -> None:
    expected = {
        point
        for point in points
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
    }
    assert set(non_dominated(points)) == expected


@given(POINTS)
def test_a_window_holds_its_points(points: list[tuple[float, float]]) -> None:
    window = Window.around(points)
    assert all(window.holds(point) for point in points)


def test_architectures_have_marks_of_their_own(family: FrontDocument) -> None:
    figure = plot_objective_pairs(family)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:3] == ["large", "small"]
    axes = panels(figure)[0]
    assert axes.get_ylabel() == "KL + offset: loss above the best FP32 (nats)"
    sizes = [len(drawn.get_offsets()) for drawn in axes.collections]
    assert sizes.count(len(family.front) // 2) == 2
    assert inked(plot_accuracy(family)) > 0.02
