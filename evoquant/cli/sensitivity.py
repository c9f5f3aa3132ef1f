"""``evoquant sensitivity``: which groups suffer most from few bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evoquant.cli.options import Architecture, AsJson, ExperimentFile
from evoquant.cli.output import STATUS, show
from evoquant.config import load_experiment
from evoquant.evaluate import analyze_sensitivity, metric_correlation, prepare


def sensitivity(
    experiment: ExperimentFile,
    weight_bits: Annotated[int, typer.Option(help="Bits of the probed group's weights.")] = 4,
    activation_bits: Annotated[int, typer.Option(help="Bits of its activations.")] = 4,
    plot: Annotated[Path | None, typer.Option(help="Draw the groups by depth into this PNG file.")] = None,
    architecture: Architecture = None,
    as_json: AsJson = False,
) -> None:
    """Quantize one group at a time and rank the groups by the divergence of the output."""
    bench = prepare(load_experiment(experiment).of_architecture(architecture))
    graph = bench.captured.graph
    entries = analyze_sensitivity(
        bench.evaluator,
        graph,
        bits=(weight_bits, activation_bits),
        on_group=lambda entry: STATUS.print(f"{entry.group}: {entry.kl:.5f}", markup=False),
    )
    document = {
        "model": graph.model,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "rank_correlation": metric_correlation(entries),
        "groups": [entry.to_dict() for entry in entries],
    }
    if plot is not None:
        from evoquant.report import plot_sensitivity
        from evoquant.report.style import save

        save(plot_sensitivity(document, [group.name for group in graph.groups]), plot)
    show(document, as_json=as_json, text=_show)


def _show(console: Console, document: Mapping[str, Any]) -> None:
    table = Table(title=f"{document['model']}: one group at W{document['weight_bits']}A{document['activation_bits']}")
    for name in ("group", "role", "block", "KL", "Fisher", "share"):
        table.add_column(name, justify="right" if name in ("KL", "Fisher") else "left")
    for entry in document["groups"]:
        bar = "#" * round(20 * entry["share"])
        table.add_row(
            entry["group"],
            entry["role"],
            entry["block_kind"],
            f"{entry['kl']:.5f}",
            f"{entry['fisher']:.5f}",
            f"{bar:<20}",
        )
    console.print(table)
    console.print(f"rank correlation of KL and Fisher: {document['rank_correlation']:.3f}")
