"""What each step of quantization brings: the steps added in order, on test images, as the table of docs/accuracy.md.

    EVOQUANT_ASSETS=/path/to/assets python experiments/ablation.py experiments/quickstart.yaml --images 1000

The table of one experiment goes to the standard output as Markdown; --json prints the figures instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evoquant.api import compare_quantization_methods
from evoquant.config import Experiment, load_experiment
from evoquant.config.preparation import PreparationSpec
from evoquant.config.quantizers import CompensationSpec, RoundingSpec, TuningSpec
from evoquant.evaluate.methods import METHODS, PRECISIONS, Method, in_equal_steps, uniform_by
from evoquant.types import CalibrationMethod

NEAREST = CompensationSpec(
    weight_compensation="none",
    bias_correction=False,
    gradient_share=0.0,
    scale_fractions=(),
    ridges=(),
    rounding=RoundingSpec(iterations=0),
    tuning=TuningSpec(steps=0),
)
RESCALING = PreparationSpec().rescaling


def steps() -> list[Method]:
    """The steps, each with all that come before it."""
    full = METHODS["full"]
    found = [replace(METHODS["minmax"], name="plain min-max")]
    uneven = replace(full, name="+ uneven levels of activations", rescaling=(), compensation=NEAREST)
    for method, name in (
        (CalibrationMethod.FISHER, "+ ranges by Fisher cost"),
        (CalibrationMethod.RANKING, "(instead, q and k by the order of scores)"),
    ):
        found.append(replace(uneven, name=name, make_plan=in_equal_steps(uniform_by(method))))
    found.append(replace(uneven, name="+ normal levels of weights", make_plan=in_equal_steps(full.make_plan)))
    found.append(uneven)
    for count, step in enumerate(RESCALING, 1):
        found.append(replace(uneven, name=f"+ rescaling: {step}", rescaling=RESCALING[:count]))
    rescaled = found[-1]
    bias = NEAREST.model_copy(update={"bias_correction": True})
    compensated = bias.model_copy(update={"weight_compensation": "gptq"})
    weighted = compensated.model_copy(update={"gradient_share": CompensationSpec().gradient_share})
    scaled = weighted.model_copy(update={"scale_fractions": CompensationSpec().scale_fractions})
    ridge = scaled.model_copy(update={"ridges": CompensationSpec().ridges})
    learned = ridge.model_copy(update={"rounding": RoundingSpec()})
    tuned = learned.model_copy(update={"tuning": TuningSpec()})
    found.append(replace(rescaled, name="+ bias correction", compensation=bias))
    found.append(replace(rescaled, name="+ weight compensation", compensation=compensated))
    found.append(replace(rescaled, name="+ positions weighted by gradients", compensation=weighted))
    found.append(replace(rescaled, name="+ scales of rows by compensated error", compensation=scaled))
    found.append(replace(rescaled, name="+ fitted in order, with ridge", compensation=ridge, is_fitted=True))
    found.append(replace(rescaled, name="+ learned rounding", compensation=learned, is_fitted=True))
    found.append(replace(rescaled, name="+ tuned scales and biases", compensation=tuned, is_fitted=True))
    return found


def table(rows: Sequence[dict[str, Any]], precisions: Sequence[str]) -> str:
    """Markdown: a row for each step, divergence and drop for each precision."""
    head = ["step", *(f"{precision.upper()} KL, drop pp" for precision in precisions), "s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in dict.fromkeys(row["method"] for row in rows):
        of_step = {row["precision"]: row for row in rows if row["method"] == name}
        cells = [
            f"{row['kl']:.4f}, {row['drop_pp']:+.2f} ± {row['drop_stderr_pp']:.2f}"
            for row in (of_step[precision] for precision in precisions)
        ]
        seconds = next(iter(of_step.values()))["preparation_seconds"] + sum(row["seconds"] for row in of_step.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Judge all steps of one experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--images", type=int, help="test images; default: all of the experiment")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one; repeat for more")
    parser.add_argument("--step", action="append", type=int, help="only this step, counted from 0; repeat for more")
    parser.add_argument("--json", action="store_true", help="print the figures")
    arguments = parser.parse_args()
    precisions = arguments.precision or PRECISIONS
    chosen = steps() if arguments.step is None else [steps()[index] for index in arguments.step]
    rows = compare_quantization_methods(
        _with_images(load_experiment(arguments.experiment), arguments.images),
        methods=chosen,
        precisions=precisions,
        on_method=lambda name: print(name, file=sys.stderr, flush=True),
    )
    print(json.dumps(rows, indent=1) if arguments.json else table(rows, precisions))


def _with_images(experiment: Experiment, count: int | None) -> Experiment:
    if count is None:
        return experiment
    test = experiment.data.test.model_copy(update={"count": count})
    return experiment.model_copy(update={"data": experiment.data.model_copy(update={"test": test})})


if __name__ == "__main__":
    main()
