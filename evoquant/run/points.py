"""Points of a front: which one is the knee, and which ones meet the test images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evoquant.evaluate import Accuracy
from evoquant.run.objectives import vector
from evoquant.search import knee
from evoquant.types.front import FrontDocument, ParetoPoint, TestedAccuracy

KNEE_DROP_PP = 0.5
"""The knee is chosen among points that lose at most this much top-1 on the selection images, if there are any."""

KNEE_KL = 0.01
"""The knee is chosen among points that diverge at most this much more than uniform 8 bits, in nats, if there are any.

On a few hundred images top-1 is too coarse to say who loses little. It promises no top-1: on the 1000 test images of
DeiT-Tiny and MobileNetV2 eight plans that diverge by 0.010 to 0.015 nats lose -0.2 to 1.6 points, 0.7 on average, and
six of 0.02 to 0.03 nats 0.0 to 1.5, 0.9 on average; the standard error of each is about 0.6.
"""

KNEE_WEIGHTS = {"kl": 0.4, "accuracy_drop_pp": 0.4, "latency_ms": 0.2, "energy_mj": 0.1, "memory_mb": 0.3}


def tested(accuracy: Accuracy) -> TestedAccuracy:
    """What the result keeps of an accuracy on the test images."""
    return TestedAccuracy(
        top1=accuracy.top1,
        ci95=accuracy.top1_ci95,
        images=accuracy.images,
        drop_pp=accuracy.drop_pp,
        drop_stderr_pp=accuracy.drop_stderr_pp,
        kl=accuracy.kl,
    )


def knee_of(front: Sequence[ParetoPoint], baselines: Sequence[ParetoPoint], names: Sequence[str]) -> str | None:
    """The id of the knee.

    It is sought among the points that lose little and cost less energy and storage than uniform 8 bits; where there are
    none, among those that lose little; else among all.
    """
    if not front:
        return None
    bound = next((point for point in baselines if point.id == "w8a8"), None)
    little = [point for point in front if _loses_little(point, bound)]
    cheaper = [point for point in little if bound is not None and _is_cheaper(point, bound)]
    eligible = cheaper or little or list(front)
    values = [vector(point.objectives, names) for point in eligible]
    return eligible[knee(values, weights=[KNEE_WEIGHTS.get(name, 0.1) for name in names])].id


def _loses_little(point: ParetoPoint, bound: ParetoPoint | None) -> bool:
    if point.objectives["accuracy_drop_pp"] > KNEE_DROP_PP:
        return False
    return bound is None or point.objectives["kl"] <= bound.objectives["kl"] + KNEE_KL


def _is_cheaper(point: ParetoPoint, bound: ParetoPoint) -> bool:
    return all(point.objectives[name] < bound.objectives[name] for name in ("energy_mj", "model_size_bytes"))


def spread(document: FrontDocument, count: int | None) -> list[ParetoPoint]:
    """The members of the front to test: all, or the knee and others evenly along the front."""
    front = list(document.front)
    if count is None or count >= len(front):
        return front
    if count == 0:
        return []
    chosen = {document.knee: document.point("knee")} if document.knee else {}
    for position in np.linspace(0, len(front) - 1, num=count).round().astype(int).tolist():
        if len(chosen) < count:
            chosen.setdefault(front[position].id, front[position])
    return [point for point in front if point.id in chosen]
