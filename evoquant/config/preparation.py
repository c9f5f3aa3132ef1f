"""What is done to a model before any precision is chosen for it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

RescalingStep = Literal["rotations", "depthwise", "norms", "chains", "attention_rows"]


class PreparationSpec(BaseModel):
    """Changes of the floating-point model that leave its results as they are and make it easier to quantize.

    Every change is judged by the divergence of the quantized model on calibration images that nothing was fitted to,
    as the geometric mean over W6A6, W4A8 and W4A4, none of which may lose more than that mean gains, with weights
    compensated as in the run: what spreads the range of activations evenly may make weights harder to round.

    Attributes:
        rescaling: Steps to try, in this order; each channel family keeps a step only where the guard sees it help.
            ``rotations``: the channels of a residual stream, or of another set that only linear operations and whole
            norms meet, are mixed by a random rotation, which makes them alike and their values bell-shaped.
            ``depthwise``: channels are multiplied to one range in front of a depthwise convolution whose input cannot
            be rescaled at its source (behind SiLU, or a clip at 6): one elementwise operation more, or none where the
            kernel in front of it applies the factors, as evoquant's own do. These two come first, wherever they stand.
            ``norms``: the affine part of a norm brings the channels of the activations and the columns of the weights
            behind it nearer to one range, both alike. ``chains``: one range of the activations, for channels that run
            from product to product through sums and rectifiers (cross-layer equalization); it has helped no model that
            it was tried on, and is left out by default.
            ``attention_rows``: the weights that an attention gives to values are quantized in units of the greatest of
            their row, and what they give is multiplied by it; this comes last, wherever it stands.
        guard_share: The guard judges on one of so many calibration images and never shows them to the steps.
        gradient_images: Calibration images that the gradients for range setting by ``fisher`` come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rescaling: tuple[RescalingStep, ...] = ("rotations", "depthwise", "norms", "attention_rows")
    guard_share: PositiveInt = 4
    gradient_images: PositiveInt = 64
