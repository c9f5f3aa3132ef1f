"""Racing: a candidate that is dominated with confidence after some of the images need not see the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from evoquant.search.domain import Floats

CONFIDENCE = 3.0
"""Standard errors by which a candidate has to be worse: were means normal, 1 of 740 equal candidates would be stopped
at a look. A candidate meets many rivals, and a wrong stop can lose a member of the front, hence no fewer."""

LEAST_IMAGES = 64
"""Images before the first look: the mean of fewer heavy-tailed differences says little."""


def looks(batches: Sequence[int]) -> tuple[int, ...]:
    """After how many images a race is looked at: the whole batches next to a quarter and to a half of all images.

    Args:
        batches: Images of each batch.
    """
    ends = list(accumulate(batches))
    wanted = (max(LEAST_IMAGES, -(-ends[-1] // share)) for share in (4, 2)) if ends else ()
    found = {next((end for end in ends if end >= images), ends[-1]) for images in wanted}
    return tuple(sorted(found - {ends[-1]})) if ends else ()


@dataclass(frozen=True, slots=True, eq=False)
class Rivals:
    """Candidates that were evaluated on all images.

    Attributes:
        costs: Their objectives that are known without images, shape (rivals, costs).
        losses: Their other objectives on each image, shape (rivals, losses, images); an objective is the mean.
    """

    costs: Floats
    losses: Floats

    def beat(self, costs: Floats, losses: Floats) -> Floats | None:
        """Estimate the losses of a candidate if a rival dominates it with confidence, else None.

        A rival does if no cost of it is greater, and if on the images that both have seen every mean difference of
        losses exceeds ``CONFIDENCE`` standard errors. Differences are paired, so what makes an image hard for both
        drops out; the images are a sample without repetition from all of them, so the standard error vanishes as it
        grows to the whole. Losses have heavy tails, and the danger is a few hard images, still to come, that the rival
        does badly on: its losses on all images are known, so where these spread wider than on the images seen, the
        standard error is taken to be greater by as much. Who is equal is never beaten.

        The estimate is the rival's mean on all images plus the mean difference, for the rival whose difference is known
        best: it is dominated, too.

        Args:
            costs: Of the candidate, shape (costs,).
            losses: On the first images, shape (losses, images).

        References:
            W. G. Cochran, "Sampling Techniques", 3rd edition, Wiley, 1977, sections 2.6 (finite population) and 7.3
            (difference estimator). O. Maron and A. W. Moore, "Hoeffding Races", NIPS 6, 1993 (the idea of a race).
        """
        is_no_dearer = (self.costs <= costs).all(axis=1)
        seen, total = losses.shape[1], self.losses.shape[2]
        if seen < 2 or not losses.shape[0] or not is_no_dearer.any():
            return None
        rivals = self.losses[is_no_dearer]
        difference = losses - rivals[:, :, :seen]
        mean = difference.mean(axis=2)
        error = difference.std(axis=2, ddof=1) * np.sqrt(1 / seen - 1 / total)
        spread, spread_seen = rivals.std(axis=2), rivals[:, :, :seen].std(axis=2)
        is_worse = mean * spread_seen > CONFIDENCE * error * np.maximum(spread, spread_seen)
        winners = np.flatnonzero(is_worse.all(axis=1))
        if not len(winners):
            return None
        best = winners[np.argmin(error[winners, 0])]
        return np.asarray(rivals[best].mean(axis=1) + mean[best], dtype=np.float64)
