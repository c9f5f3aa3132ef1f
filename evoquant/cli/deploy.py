"""``evoquant export`` and ``evoquant verify``: points of a run as models that run, and whether they keep their word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from evoquant.cli.options import AsJson, RunFolder
from evoquant.cli.output import ExitCode, show
from evoquant.deploy.exports import export_run, verify_run

Points = Annotated[str, typer.Option(help="Ids of points, separated by commas; or knee, or all.")]


def export(run_dir: RunFolder, points: Points = "knee", as_json: AsJson = False) -> None:
    """Write points of a run as packed models that run on the native kernels."""
    show(export_run(run_dir, _ids(points)), as_json=as_json, text=_show_exports)


def verify(
    run_dir: RunFolder,
    points: Points = "knee",
    rounds: Annotated[int, typer.Option(help="Samples of the model and of each kernel.", min=1)] = 15,
    as_json: AsJson = False,
) -> None:
    """Run exported points and compare accuracy, latency and size with what was predicted."""
    document = verify_run(run_dir, _ids(points), rounds=rounds)
    show(document, as_json=as_json, text=_show_records)
    if not document["passed"]:
        raise typer.Exit(ExitCode.INFEASIBLE)


def _ids(points: str) -> list[str]:
    return [name.strip() for name in points.split(",") if name.strip()]


def _show_exports(console: Console, document: Mapping[str, Any]) -> None:
    for entry in document["exports"]:
        size = sum(entry["files"].values()) / 1e6
        console.print(f"{entry['id']} {entry['name']}: {entry['folder']} ({size:.3f} MB, {entry['steps']} steps)")
        for name, reason in entry["fallbacks"].items():
            console.print(f"  {name}: {reason}", markup=False)


def _show_records(console: Console, document: Mapping[str, Any]) -> None:
    for record in document["points"]:
        console.print(f"{record['id']} {record['name']}: {'passed' if record['passed'] else 'FAILED'}")
        for line in _lines(record):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _lines(record: Mapping[str, Any]) -> list[str]:
    lines = [*_accuracy_lines(record["accuracy"]), _size_line(record["size"]), *_latency_lines(record.get("latency"))]
    lines += [f"not measured: {name} ({reason})" for name, reason in record["not_measured"].items()]
    return [*lines, *(f"without a kernel: {name}: {reason}" for name, reason in record["fallbacks"].items())]


def _accuracy_lines(accuracy: Mapping[str, Any]) -> list[str]:
    differing = len(accuracy["differing_images"])
    ties = f" ({accuracy['differing_near_ties']} of them near ties)" if differing else ""
    return [
        f"{_verdict(accuracy)} top-1 {accuracy['packed_top1']:.2f} packed, {accuracy['simulated_top1']:.2f} simulated, "
        f"{differing} of {accuracy['images']} images differ{ties}",
        f"{'':6} logits differ by {accuracy['logit_difference_rms']:.2g} (root mean square; allowed "
        f"{accuracy['logit_difference_allowed_rms']:.2g})",
    ]


def _size_line(size: Mapping[str, Any]) -> str:
    stored, predicted = size["stored_bytes"] / 1e6, size["predicted_bytes"] / 1e6
    return f"{_verdict(size)} size {stored:.3f} MB stored, {predicted:.3f} MB predicted"


def _latency_lines(latency: Mapping[str, Any] | None) -> list[str]:
    if latency is None:
        return []
    measured = latency["measured"]
    lines = [
        f"{_verdict(latency)} latency {measured['median_ms']:.3f} ms measured, sum of kernels "
        f"{latency['table_now_ms']:.3f} ms: ratio {latency['ratio']:.3f} ({latency['clock']} time, "
        f"{measured['threads']} thread(s); allowed {1 - latency['tolerance']:.2f} to {1 + latency['tolerance']:.2f})"
    ]
    if latency["predicted_ms"] is not None:
        lines.append(
            f"{'':6} the search saw {latency['predicted_ms']:.3f} ms; its table against the same kernels now: "
            f"{latency['drift']:.2f}"
        )
    return lines


def _verdict(part: Mapping[str, Any]) -> str:
    return "ok    " if part["passed"] else "FAILED"
