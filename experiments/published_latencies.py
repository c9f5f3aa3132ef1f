"""Print the predictions of the device files beside published latencies, as the table of docs/hardware.md.

python experiments/published_latencies.py [--model resnet18]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from evoquant.config.yaml_loader import load_yaml
from evoquant.graph import capture
from evoquant.hardware import Roofline, load_device
from evoquant.models import create
from evoquant.types import LayerQuantConfig, ModelGraph, Op
from evoquant.types.precision import FLOAT

PUBLISHED = Path(__file__).parent.parent / "docs" / "published_latencies.yaml"
PLANS = {"fp32": FLOAT, "w8a8": LayerQuantConfig()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="only this model")
    wanted = parser.parse_args().model
    print("| device | model | plan | batch | published ms | predicted ms | predicted / published | note |")
    print("|---|---|---|---|---|---|---|---|")
    for row in load_yaml(PUBLISHED).data["latencies_ms"]:
        if wanted in (None, row["model"]):
            print(line_of(row))


def line_of(row: dict[str, Any]) -> str:
    batch = int(row.get("batch", "1"))
    graph = batched(graph_of(row["model"], row["image_size"]), batch)
    plan = {op.name: PLANS[row["plan"]] for op in graph.ops}
    predicted = Roofline(load_device(row["device"])).latency(graph, plan).ms
    cells = [row["device"], row["model"], row["plan"], batch, row["value"], f"{predicted:.3g}"]
    ratio = f"{predicted / row['value']:.2f}"
    return f"| {' | '.join(map(str, [*cells, ratio, row.get('note', '')]))} |"


@cache
def graph_of(name: str, image_size: int) -> ModelGraph:
    return capture(create(name), (3, image_size, image_size), name=name).graph


def batched(graph: ModelGraph, batch: int) -> ModelGraph:
    """The same model on several images at once: more rows of every product and every tensor, the same weights."""

    def grown(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * batch, *shape[1:])

    def op_of(op: Op) -> Op:
        second = grown(op.weight_shape) if op.kind == "matmul" else op.weight_shape
        return replace(
            op,
            input_shape=grown(op.input_shape),
            weight_shape=second,
            output_shape=grown(op.output_shape),
            macs=op.macs * batch,
        )

    nodes = tuple(replace(node, shape=grown(node.shape)) for node in graph.nodes)
    return replace(graph, nodes=nodes, ops=tuple(op_of(op) for op in graph.ops))


if __name__ == "__main__":
    main()
