"""A batch of plans that races against the front as it was when the batch began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoquant.evaluate import Plan, Scores
from evoquant.hardware import CostModel
from evoquant.run.objectives import EVALUATED, cost_figures
from evoquant.search import Evaluated, Rivals

Floats = NDArray[np.float64]


class Race:
    """Says of a plan after some of the images whether it may stop; the answer depends on nothing but its arguments.

    Args:
        looks: After how many images to look.
        objectives: Names of the objectives.
        costs: Costs of plans.
        front: The rivals, at least one.
        scores: Their scores on all images, by key.
    """

    def __init__(
        self,
        looks: Sequence[int],
        *,
        objectives: Sequence[str],
        costs: CostModel,
        front: Sequence[Evaluated],
        scores: Mapping[str, Scores],
    ) -> None:
        self.looks = tuple(looks)
        self._costs = costs
        self._known = [name for name in objectives if name not in EVALUATED]
        self._losses = [name for name in objectives if name in EVALUATED]
        known = [objectives.index(name) for name in self._known]
        self._rivals = Rivals(
            costs=np.array([[entry.objectives[index] for index in known] for entry in front]),
            losses=np.stack([losses(scores[entry.key], self._losses) for entry in front]),
        )

    def estimates(self, plan: Plan, scores: Scores) -> dict[str, float] | None:
        """The evaluated objectives of a plan that is dominated with confidence on these images, None if it goes on."""
        values = cost_figures(self._costs.costs(plan))
        costs = np.array([values[name] for name in self._known])
        found = self._rivals.beat(costs, losses(scores, self._losses))
        return None if found is None else dict(zip(self._losses, found.tolist(), strict=True))


def losses(scores: Scores, names: Sequence[str]) -> Floats:
    """Evaluated objectives image by image, shape (objectives, images)."""
    of = {
        "kl": scores["kl"],
        "accuracy_drop_pp": 100.0 * (scores["was_right"].astype(np.float64) - scores["is_right"]),
    }
    return np.array([of[name] for name in names], dtype=np.float64)
