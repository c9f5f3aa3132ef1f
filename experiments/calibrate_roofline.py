"""Fit the roofline of this machine to half of its latency table and print the errors on the other half.

    python experiments/calibrate_roofline.py [--models mobilevit_xxs deit_tiny_patch16_224] [--table FILE] [--seeds 3]

Without ``--table`` the kernels of the models are measured first (about a minute); run it alone on the machine. The
environment variable ``EVOQUANT_ISA`` chooses the instruction set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from evoquant.graph.capture import capture

from evoquant import kernels
from evoquant.hardware import (
    Device,
    LatencyTable,
    calibrate_roofline,
    load_device,
    machine_table,
    reachable_cases,
    read_table,
)
from evoquant.hardware.table import Case
from evoquant.models import create
from evoquant.types import LayerQuantConfig
from evoquant.types.precision import FLOAT

WIDTHS = ((8, 8), (7, 8), (6, 8), (5, 8), (4, 8), (8, 4), (4, 4))
PRECISIONS = [FLOAT, *(LayerQuantConfig(weight_bits=w, activation_bits=a) for w, a in WIDTHS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilevit_xxs", "deit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    table = read_table(arguments.table) if arguments.table else measured(arguments.models)
    print(f"{table.machine.get('cpu')}, {table.machine.get('isa')}, {len(table.entries)} entries")
    for seed in range(arguments.seeds):
        found = calibrate_roofline(table, load_device("host_cpu"), seed=seed)
        for half in ("fitted", "held_out"):
            errors = getattr(found, half)
            print(f"seed {seed} {half:8s}: {errors.entries} entries, median {errors.median:.1%}, p90 {errors.p90:.1%}")
        print(f"  worst: {found.held_out.worst}")


def measured(models: list[str]) -> LatencyTable:
    device = load_device("host_cpu")
    return machine_table([case for name in models for case in cases_of(name, device)])


def cases_of(name: str, device: Device) -> Iterator[Case]:
    size = 256 if name.startswith("mobilevit") else 224
    graph = capture(create(name), (3, size, size), name=name).graph
    yield from reachable_cases(graph, {op.name: PRECISIONS for op in graph.ops}, device, kernels)


if __name__ == "__main__":
    main()
