"""What makes the accuracy of plans of several architectures comparable.

The divergence of a plan from its own floating-point model says nothing of how good that model is, and the divergence
from another, independently trained model is large whatever the plan. But a calibrated floating-point model has, in
expectation, its own probabilities as labels, and then the cross-entropy of the quantized model is that of the
floating-point model plus the divergence between the two. So the divergence with the constant distance of the
floating-point models added to it, the offset, is an error on one scale for all architectures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from evoquant.errors import ConfigurationError
from evoquant.evaluate.accuracy import LabelledImages
from evoquant.evaluate.metrics import Accuracy, Scores, accuracy_of
from evoquant.types.front import FloatAccuracy


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the floating-point model of an architecture stands beside the reference architecture, on one image set.

    Attributes:
        own: Its accuracy, with the offset.
        top1_behind_pp: By how much the top-1 of the reference is higher, in percentage points.
        reference_right: For each image, whether the floating-point model of the reference names its class.
    """

    own: FloatAccuracy
    top1_behind_pp: float
    reference_right: NDArray[np.bool_]

    @property
    def is_reference(self) -> bool:
        """Whether it is the architecture that the others are compared with."""
        return self.own.offset == 0.0

    def judged(self, scores: Scores) -> Accuracy:
        """Accuracy of a plan beside the reference: ``kl`` with the offset, and the paired drop of top-1 from it.

        Args:
            scores: Of the plan on all images of the set.
        """
        beside = scores.copy()
        beside["was_right"] = self.reference_right
        accuracy = accuracy_of(beside)
        return replace(accuracy, kl=accuracy.kl + self.own.offset)


def standings(images: Mapping[str, LabelledImages], *, reference: str | None = None) -> dict[str, Standing]:
    """The standing of each architecture on one image set.

    Args:
        images: The set as each architecture sees it.
        reference: The architecture that offsets count from; None: the one with the least cross-entropy.

    Raises:
        ConfigurationError: If the labels of two architectures differ.
    """
    first = next(iter(images))
    for name, labelled in images.items():
        if not torch.equal(labelled.labels, images[first].labels):
            raise ConfigurationError(
                f"Architectures are compared on the same images, but the labels of '{first}' and '{name}' differ."
            )
    losses = {name: _cross_entropy(labelled) for name, labelled in images.items()}
    right = {name: _is_right(labelled) for name, labelled in images.items()}
    best = reference or min(losses, key=lambda name: float(losses[name].mean()))
    return {
        name: Standing(
            FloatAccuracy(
                images=len(loss),
                top1=100 * float(right[name].mean()),
                cross_entropy=float(loss.mean()),
                offset=float(loss.mean() - losses[best].mean()),
                offset_stderr=_standard_error(loss - losses[best]),
            ),
            top1_behind_pp=100 * float(right[best].mean() - right[name].mean()),
            reference_right=right[best],
        )
        for name, loss in losses.items()
    }


def _cross_entropy(labelled: LabelledImages) -> NDArray[np.float64]:
    loss = F.cross_entropy(labelled.reference.double(), labelled.labels, reduction="none")
    return np.asarray(loss.numpy(), dtype=np.float64)


def _is_right(labelled: LabelledImages) -> NDArray[np.bool_]:
    return np.asarray((labelled.reference.argmax(1) == labelled.labels).numpy(), dtype=np.bool_)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
