"""What a search gained over its baselines, in one honest sentence."""

from __future__ import annotations

from collections.abc import Sequence

from evoquant.run.objectives import vector
from evoquant.search import ReferencePoint
from evoquant.types.front import Comparison, ParetoPoint

COMPARED_WITH = "w8a8"

LABELS = {
    "presets": "the presets together",
    "seeds": "the seeds of integer programming alone",
    "milp": "integer programming at equal cost",
    "greedy": "the greedy search at equal cost",
    "random": "random search at equal cost",
    "nsga2": "plain NSGA-II at equal cost",
}
"""What the best baseline is called; one of several architectures by the name of its comparison."""


def verdict(
    front: Sequence[ParetoPoint],
    baselines: Sequence[ParetoPoint],
    names: Sequence[str],
    knee: str | None,
    reference: ReferencePoint | None,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """Compare the front with its baselines.

    Args:
        front: Members of the front.
        baselines: What it is compared with.
        names: The minimised objectives.
        knee: Id of the knee.
        reference: Scale of the hypervolume.
        comparisons: What other ways to spend evaluations reach, on that scale.
    """
    if not front or reference is None:
        return "Nothing was found yet."
    own = reference.hypervolume([vector(point.objectives, names) for point in front])
    if not baselines:
        return f"The front has a hypervolume of {own:.3f}; there is no baseline to compare it with."
    presets = reference.hypervolume([vector(point.objectives, names) for point in baselines])
    rivals = {"presets": presets, **{entry.name: entry.hypervolume for entry in comparisons}}
    best = max(rivals, key=lambda name: rivals[name])
    gain = f"The front has a hypervolume of {own:.3f}, {LABELS.get(best, best)} {rivals[best]:.3f}: " + (
        f"a gain of {100 * (own / rivals[best] - 1):.1f} %." if 0 < rivals[best] < own else "no gain."
    )
    if not rivals[best]:
        gain = f"The front has a hypervolume of {own:.3f}, no baseline has any."
    by_id = {point.id: point for point in (*front, *baselines)}
    if knee not in by_id or COMPARED_WITH not in by_id:
        return gain
    return f"{gain} {_against(by_id[knee], by_id[COMPARED_WITH])}"


def _against(point: ParetoPoint, baseline: ParetoPoint) -> str:
    """How one point differs from a baseline."""
    parts = []
    for name, label in (("latency_ms", "latency"), ("energy_mj", "energy"), ("model_size_bytes", "model size")):
        change = 100 * (point.objectives[name] / baseline.objectives[name] - 1)
        parts.append(f"{label} {change:+.0f} %")
    if point.test is not None and baseline.test is not None:
        difference = point.test.top1 - baseline.test.top1
        parts.append(f"test top-1 {difference:+.1f} points on {point.test.images} images")
    else:
        difference = point.objectives["top1"] - baseline.objectives["top1"]
        parts.append(f"selection top-1 {difference:+.1f} points")
    return f"The knee {point.id} ({point.name}) against {baseline.name}: {', '.join(parts)}."
