"""The mean square error of a layer's output as a quadratic form of the change of its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evoquant.calibrate.definite import damped_factor
from evoquant.calibrate.moments import (
    MomentAccumulator,
    Moments,
    input_vectors,
    input_width,
    output_vectors,
    vector_weights,
)
from evoquant.types import Op


@dataclass(frozen=True, slots=True, eq=False)
class OutputError:
    """``E || r - D x - b ||^2`` of a layer whose weight changes by D and whose bias changes by b.

    ``x`` are the inputs that the layer gets, and the residual ``r`` is what its output lacks with the old weight: zero
    where its inputs are those of the floating-point model.

    Attributes:
        inputs: Moments of x.
        cross: ``E[r x^T]``, (groups, rows, width); None for a residual of zero.
        mean: ``E[r]``, (groups, rows); None likewise.
        power: ``E[r^2]``, (groups, rows); None likewise.
    """

    inputs: Moments
    cross: Tensor | None = None
    mean: Tensor | None = None
    power: Tensor | None = None

    def best_bias(self, change: Tensor) -> Tensor:
        """The change of the bias with the least error beside a change of the weight.

        Args:
            change: (groups, rows, width).

        Returns:
            (groups, rows): the mean of what is left of the residual.
        """
        shift = -torch.einsum("grw,gw->gr", change, self.inputs.mean)
        return shift if self.mean is None else shift + self.mean

    def best_change(self, ridge: float) -> Tensor:
        """The change of a float weight with the least error, the bias being free.

        Args:
            ridge: Penalty on the square of the change, as a share of the mean variance of the inputs.

        Returns:
            (groups, rows, width); zero where the residual is.

        References:
            Y. Zhong et al., "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers", ICML 2024,
            section 4.1.
        """
        if self.cross is None or self.mean is None:
            groups, width = self.inputs.mean.shape
            return torch.zeros(groups, 1, width)
        centred = self.cross - self.mean[:, :, None] * self.inputs.mean[:, None, :]
        factor = damped_factor(self.inputs.covariance, ridge)
        return torch.cholesky_solve(centred.double().transpose(1, 2), factor).transpose(1, 2).float()

    def of(self, change: Tensor, bias_change: Tensor | None = None) -> Tensor:
        """The error of each output, (groups, rows), for a change of weight, (groups, rows, width), and bias."""
        total = torch.einsum("grw,grw->gr", change @ self.inputs.second, change)
        if self.cross is not None and self.power is not None:
            total = total + self.power - 2 * torch.einsum("grw,grw->gr", change, self.cross)
        if bias_change is not None:
            total = total + bias_change.square() - 2 * bias_change * self.best_bias(change)
        return total.clamp_min(0)


class ErrorAccumulator:
    """Sums of one operation's inputs and of what its output lacks, in double precision."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._moments = MomentAccumulator(op)
        groups = op.geometry.groups if op.geometry else 1
        rows = op.weight_shape[0] // groups
        self._weight = 0.0
        self._cross = torch.zeros(groups, rows, input_width(op), dtype=torch.float64)
        self._sum = torch.zeros(groups, rows, dtype=torch.float64)
        self._power = torch.zeros(groups, rows, dtype=torch.float64)

    def update(self, inputs: Tensor, residual: Tensor, importance: Tensor | None = None) -> None:
        """Take a batch into account; it is not kept.

        Args:
            inputs: What the operation gets.
            residual: What its output lacks, in the shape of its output.
            importance: Of the positions of its output; None: all are alike.
        """
        self._moments.update(inputs, importance)
        pieces = zip(input_vectors(inputs, self._op), output_vectors(residual, self._op), strict=True)
        for (vectors, lacking), weights in zip(pieces, vector_weights(self._op, importance), strict=False):
            weighted = lacking if weights is None else lacking * weights
            self._weight += vectors.shape[1] if weights is None else float(weights.sum())
            self._cross += weighted.transpose(1, 2) @ vectors
            self._sum += weighted.sum(dim=1)
            self._power += (weighted * lacking).sum(dim=1)

    def finish(self) -> OutputError:
        """The error as a function of a change of weight and bias.

        Raises:
            DataError: If nothing was seen.
        """
        moments = self._moments.finish()
        sums = (self._cross, self._sum, self._power)
        return OutputError(moments, *((total / self._weight).float() for total in sums))
