"""One weight of one operation, quantized so that its output changes least: rounding, compensation and bias together.

Candidates are fitted to one part of the calibration images and judged on the other, so that a step stays only where it
helps on images that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from evoquant.calibrate.gptq import ErrorSpread, gptq
from evoquant.calibrate.moments import Moments, SplitMoments, rows_of
from evoquant.calibrate.output_error import OutputError
from evoquant.calibrate.refine import refine
from evoquant.config.quantizers import CompensationSpec
from evoquant.quant import QuantParams, fake_quantize
from evoquant.types import Op, QuantizationScheme

REFINEMENT_DAMPING = 0.1
"""Regularization of the error that refinement lessens, as a share of the mean variance of the inputs."""

MakeParams = Callable[[Tensor], QuantParams]
"""Scales and zero points for a float weight in its stored shape."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """The weight of one operation as it is computed with.

    Attributes:
        weight: Quantized and dequantized, in its stored shape: every value lies on the grid of ``params``.
        params: Scales and zero points.
        bias: The bias that goes with it, (out,); None: the operation's own.
        steps: What was kept: ``nearest``, ``bias``, ``gptq``, ``refine``, ``scales``, ``ridge``, ``learned``,
            ``tuned``.
        error: Output error on the held-out images, relative to that of rounding to the nearest; 1 where it is kept.
    """

    weight: Tensor
    params: QuantParams
    bias: Tensor | None = None
    steps: tuple[str, ...] = ("nearest",)
    error: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SplitError:
    """The output error on the two parts of the calibration images."""

    fitted: OutputError
    held_out: OutputError

    @classmethod
    def of_float_inputs(cls, moments: SplitMoments) -> SplitError:
        """Of a layer that gets the inputs of the floating-point model."""
        return cls(OutputError(moments.fitted), OutputError(moments.held_out))


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A quantized weight, the float weight that it was rounded from, and the number of the damping that GPTQ had."""

    rows: Tensor
    target: Tensor
    params: QuantParams
    bias_change: Tensor | None
    steps: tuple[str, ...]
    error: float
    damping: int = 0


def compensate(
    op: Op,
    weight: Tensor,
    bias: Tensor | None,
    make_params: MakeParams,
    error: SplitError,
    settings: CompensationSpec,
) -> QuantizedWeight:
    """Quantize one weight with the least output error on held-out images.

    Args:
        op: The operation.
        weight: Its float weight.
        bias: Its float bias; None: it has none.
        make_params: Chooses scales; called again for a weight that ridge regression has changed.
        error: The output error as a function of a change of weight and bias.
        settings: What to try.

    Returns:
        The candidate with the least error on the held-out images; rounding to the nearest is one of them.
    """
    candidates = list(_Candidates(op, weight, make_params, error, settings))
    best = min(candidates, key=lambda candidate: candidate.error)
    nearest = candidates[0].error
    old_bias = torch.zeros(weight.shape[0]) if bias is None else bias
    return QuantizedWeight(
        best.rows.reshape(weight.shape),
        best.params,
        None if best.bias_change is None else old_bias + best.bias_change.flatten(),
        best.steps,
        best.error / nearest if nearest > 0 else 1.0,
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """All ways to quantize one weight that the settings ask for, rounding to the nearest first."""

    op: Op
    weight: Tensor
    make_params: MakeParams
    error: SplitError
    settings: CompensationSpec

    def __iter__(self) -> Iterator[_Candidate]:
        rows = rows_of(self.weight, self.op)
        nearest = self._nearest(rows)
        yield self._judged(nearest, with_bias=False)
        found = list(self._rounded(nearest, ()))
        target = ridge_target(rows, self.error, self.settings)
        if target is not None:
            found += self._rounded(self._nearest(target), ("ridge",))
        yield from found
        best = min(found, key=lambda candidate: candidate.error, default=None)
        if best is None or "gptq" not in best.steps:
            return
        if self.settings.refinement_sweeps:
            best = self._judged(self._refined(best))
            yield best
        if self.settings.scale_fractions and has_scales_of_rows(best.params):
            yield self._judged(self._with_best_scales(best))

    def _nearest(self, target: Tensor) -> _Candidate:
        changed = target.reshape(self.weight.shape)
        params = self.make_params(changed)
        return _Candidate(
            rows_of(fake_quantize(changed, params), self.op), target, params, None, ("nearest",), math.inf
        )

    def _rounded(self, nearest: _Candidate, steps: tuple[str, ...]) -> Iterator[_Candidate]:
        """Rounding of one float weight: to the nearest, and with each damping."""
        steps = ("bias", *steps) if self.settings.bias_correction else steps
        if steps:
            yield self._judged(replace(nearest, steps=steps))
        if self.settings.weight_compensation == "none":
            return
        for number, rows in enumerate(gptq(nearest.target, nearest.params, self._spread())):
            yield self._judged(replace(nearest, rows=rows, steps=(*steps, "gptq"), damping=number))

    def _refined(self, start: _Candidate) -> _Candidate:
        hessian = _refinement_hessian(self.error.fitted.inputs, self.settings.bias_correction)
        rows = refine(start.rows, start.target, start.params, hessian, sweeps=self.settings.refinement_sweeps)
        return replace(start, rows=rows, steps=(*start.steps, "refine"))

    def _with_best_scales(self, best: _Candidate) -> _Candidate:
        """For each row the fraction of its scale whose rounding has the least error on the fitted images."""
        spread = self._spread().alone(best.damping)
        rows, scale, least = best.rows.clone(), best.params.scale.clone(), self._errors_of_rows(best.rows)
        by_row = scale.reshape(least.numel(), -1)  # a view: one scale of a row, or one for each of its groups
        for fraction in self.settings.scale_fractions:
            params = replace(best.params, scale=best.params.scale * fraction)
            (rounded,) = gptq(best.target, params, spread)
            if self.settings.refinement_sweeps:
                rounded = self._refined(replace(best, rows=rounded, params=params)).rows
            errors = self._errors_of_rows(rounded)
            is_less = errors < least
            rows[is_less], least = rounded[is_less], torch.minimum(errors, least)
            by_row[is_less.flatten()] = params.scale.reshape(by_row.shape)[is_less.flatten()]
        return replace(best, rows=rows, params=replace(best.params, scale=scale), steps=(*best.steps, "scales"))

    def _errors_of_rows(self, rows: Tensor) -> Tensor:
        """On the fitted images, (groups, rows)."""
        change, error = rows - rows_of(self.weight, self.op), self.error.fitted
        return error.of(change, error.best_bias(change) if self.settings.bias_correction else None)

    def _spread(self) -> ErrorSpread:
        return _spread(self.error.fitted.inputs, self.settings.bias_correction, self.settings.dampings)

    def _judged(self, candidate: _Candidate, *, with_bias: bool | None = None) -> _Candidate:
        change = candidate.rows - rows_of(self.weight, self.op)
        is_free = self.settings.bias_correction if with_bias is None else with_bias
        bias_change = self.error.fitted.best_bias(change) if is_free else None
        error = float(self.error.held_out.of(change, bias_change).sum())
        return replace(candidate, bias_change=bias_change, error=error)


def _hessian(inputs: Moments, *, is_centred: bool) -> Tensor:
    """What the error of a weight is measured with: a free bias takes the mean of the inputs out."""
    return inputs.covariance if is_centred else inputs.second


@lru_cache(maxsize=2)
def _spread(inputs: Moments, is_centred: bool, dampings: tuple[float, ...]) -> ErrorSpread:
    """The same for all precisions of a weight, which are often asked for one after the other."""
    return ErrorSpread.of(_hessian(inputs, is_centred=is_centred), dampings)


@lru_cache(maxsize=2)
def _refinement_hessian(inputs: Moments, is_centred: bool) -> Tensor:
    """The same for all scales and precisions of a weight."""
    hessian = _hessian(inputs, is_centred=is_centred).clone()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal += REFINEMENT_DAMPING * diagonal.mean(dim=1, keepdim=True)
    return hessian


def has_scales_of_rows(params: QuantParams) -> bool:
    """Whether each row of a weight has scales of its own that may have any value."""
    return params.scale.ndim > 0 and params.scheme is not QuantizationScheme.POWER_OF_TWO


def ridge_target(rows: Tensor, error: SplitError, settings: CompensationSpec) -> Tensor | None:
    """The float weight that makes good what the inputs lack; None where none does on the held-out images.

    Args:
        rows: The weight, (groups, rows, width).
        error: The output error.
        settings: The penalties to choose from.
    """
    if error.fitted.cross is None:
        return None
    unchanged = torch.zeros_like(rows)
    least = float(error.held_out.of(unchanged, error.fitted.best_bias(unchanged)).sum())
    target = None
    for ridge in settings.ridges:
        change = error.fitted.best_change(ridge)
        found = float(error.held_out.of(change, error.fitted.best_bias(change)).sum())
        if found < least:
            least, target = found, rows + change
    return target
