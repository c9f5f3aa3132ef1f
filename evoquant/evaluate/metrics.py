"""How far a quantized model is from its floating-point original, with the uncertainty of every figure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evoquant.errors import ModelError

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

IMAGE_SCORE = np.dtype([("kl", "<f8"), ("was_right", "?"), ("is_right", "?"), ("agrees", "?")])
"""What a plan does to one image: the divergence in nats, top-1 before and after, and whether both name one class."""

Scores: TypeAlias = NDArray[np.void]
"""One ``IMAGE_SCORE`` for each image, in the order of the images."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of one plan on one image set, beside the floating-point model on the same images.

    Attributes:
        images: Number of images.
        fp32_top1: Top-1 of the floating-point model, in percent.
        top1: Top-1 of the quantized model, in percent.
        top1_ci95: Wilson interval of ``top1``, in percent.
        drop_pp: ``fp32_top1 - top1``, in percentage points.
        drop_stderr_pp: Standard error of the paired difference, in percentage points.
        kl: Mean Kullback-Leibler divergence of the quantized from the floating-point class probabilities, in nats.
        kl_stderr: Standard error of that mean.
        agreement: Share of images with the same top-1 class in both, in percent.
    """

    images: int
    fp32_top1: float
    top1: float
    top1_ci95: tuple[float, float]
    drop_pp: float
    drop_stderr_pp: float
    kl: float
    kl_stderr: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Accuracy:
        """The inverse of ``to_dict``, also after a way through JSON."""
        return cls(**{**data, "top1_ci95": tuple(data["top1_ci95"])})


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, in percent.

    References:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share = hits / images
    square = NORMAL_95**2
    centre = (share + square / (2 * images)) / (1 + square / images)
    half = NORMAL_95 / (1 + square / images) * math.sqrt(share * (1 - share) / images + square / (4 * images**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def compare_logits(logits: Tensor, reference: Tensor, labels: Tensor) -> Accuracy:
    """Judge logits of a quantized model against those of the floating-point model.

    Args:
        logits: Shape (images, classes).
        reference: Floating-point logits of the same images, same shape.
        labels: Class indices, shape (images,).

    Raises:
        ModelError: If a logit is not finite; the message names the first image.
    """
    scores = score_images(logits, reference, labels)
    require_finite(scores)
    return accuracy_of(scores)


def score_images(logits: Tensor, reference: Tensor, labels: Tensor) -> Scores:
    """Score each image; its divergence is not finite where its logits are not."""
    scores = np.empty(len(labels), dtype=IMAGE_SCORE)
    scores["kl"] = divergence(logits, reference).numpy()
    scores["was_right"] = (reference.argmax(1) == labels).numpy()
    scores["is_right"] = (logits.argmax(1) == labels).numpy()
    scores["agrees"] = (logits.argmax(1) == reference.argmax(1)).numpy()
    return scores


def require_finite(scores: Scores, *, start: int = 0) -> None:
    """Refuse outputs that are not finite.

    Args:
        scores: Of some images of a set.
        start: Number of the first of them in the set.

    Raises:
        ModelError: If there is one; the message names the first image.
    """
    bad = np.flatnonzero(~np.isfinite(scores["kl"]))
    if len(bad):
        raise ModelError(
            f"The model's output is not finite for {len(bad)} of {len(scores)} images, first for image "
            f"{start + int(bad[0])}."
        )


def accuracy_of(scores: Scores) -> Accuracy:
    """Sum up finite scores of at least one image."""
    names = ("kl", "was_right", "is_right", "agrees")
    kl, was_right, is_right, agrees = (torch.from_numpy(scores[name].astype(np.float64)) for name in names)
    difference = was_right - is_right
    images = len(scores)
    return Accuracy(
        images=images,
        fp32_top1=100 * was_right.mean().item(),
        top1=100 * is_right.mean().item(),
        top1_ci95=wilson_interval(int(is_right.sum()), images),
        drop_pp=100 * difference.mean().item(),
        drop_stderr_pp=100 * _standard_error(difference),
        kl=kl.mean().item(),
        kl_stderr=_standard_error(kl),
        agreement=100 * agrees.mean().item(),
    )


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || logits) of each image in nats, shape (images,), in double precision."""
    log_q = F.log_softmax(logits.double(), dim=1)
    log_p = F.log_softmax(reference.double(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0)


def _standard_error(values: Tensor) -> float:
    if len(values) < 2:
        return 0.0
    return float(torch.std(values)) / math.sqrt(len(values))
