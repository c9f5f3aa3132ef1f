"""How weights and ranges are made, beside the precision that a plan gives them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

Dampings = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class RoundingSpec(BaseModel):
    """How the rounding of a finalist is learned, block by block, once its weights are fitted one after the other.

    Attributes:
        iterations: Steps of each block; 0 leaves learning out.
        code_rate: Rate of the codes, in steps of the quantizer.
        bias_rate: Rate of the biases, as a share of the root mean square of the operation's output.
        float_share: Share of the values of activations that stay float in each step, at random (QDrop), in [0, 1].
        seed: Of the order of the images, and of what stays float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: NonNegativeInt = 100
    float_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    code_rate: PositiveFloat = 0.01
    bias_rate: PositiveFloat = 0.001
    seed: int = 0


class TuningSpec(BaseModel):
    """How the scales of rows and the biases of a finalist follow the divergence of the whole network.

    Attributes:
        steps: Steps; 0 leaves tuning out.
        batch_size: Changed calibration images of a step.
        scale_rate: Rate of the logarithms of scales.
        bias_rate: Rate of the biases, as a share of the root mean square of the operation's output.
        seed: Of the order of the images and of their changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: NonNegativeInt = 100
    batch_size: PositiveInt = 16
    scale_rate: PositiveFloat = 0.0002
    bias_rate: PositiveFloat = 0.0005
    seed: int = 0


class CompensationSpec(BaseModel):
    """How the error of rounding weights is made good. Each step is kept only where held-out images confirm it.

    Attributes:
        weight_compensation: ``gptq``: rounding that spreads the error of an input over the others; ``none``: each
            weight is rounded to the nearest.
        bias_correction: Whether the mean error of each output is taken off the bias.
        gradient_share: How much of the weight of an output position in all these errors follows the square of its
            gradient, in [0, 1]; the rest is the same for all positions.
        dampings: Regularizations to choose from by held-out images, as shares of the mean variance of the inputs.
        refinement_sweeps: Passes over all inputs that revise rounding decisions.
        scale_fractions: Of the scale of a row, tried beside the scale itself, for the row has the least error after
            compensation with another one than after rounding to the nearest. Empty leaves that out.
        ridges: For finalists: penalties to choose from when weights also make good what quantized inputs lack, as
            shares of the mean variance of the inputs. Empty leaves that out.
        rounding: For finalists: how the rounding of whole blocks is learned.
        tuning: For finalists: how scales and biases of the whole network are tuned at last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_compensation: Literal["gptq", "none"] = "gptq"
    bias_correction: bool = True
    gradient_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    dampings: Dampings = (0.01, 0.1, 1.0)
    refinement_sweeps: NonNegativeInt = 4
    scale_fractions: tuple[PositiveFloat, ...] = (
        *(1.06, 1.045, 1.03, 1.015, 0.985, 0.97, 0.955, 0.94, 0.925),
        *(0.91, 0.895, 0.88, 0.865, 0.85, 0.835, 0.82, 0.805),
    )
    ridges: tuple[PositiveFloat, ...] = (0.001, 0.01, 0.1, 1.0)
    rounding: RoundingSpec = RoundingSpec()
    tuning: TuningSpec = TuningSpec()

    @property
    def is_active(self) -> bool:
        """Whether anything but rounding to the nearest is asked for."""
        return self.weight_compensation != "none" or self.bias_correction
