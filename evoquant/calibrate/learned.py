"""Parameters of a quantized model while they are learned: gradients pass the rounding straight through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.rescale import AFFINE
from evoquant.graph.canonical import aten
from evoquant.graph.constants import attribute, is_constant
from evoquant.quant import QuantParams
from evoquant.quant.lattice import Lattice
from evoquant.quant.params import lattice_of
from evoquant.types import QuantizationScheme

STEPS_FROM_ROUNDING = 0.4
"""Latent codes start at the float weight, but no farther from their code than this, so no code changes at first."""

LEARNED_SCALES = (QuantizationScheme.UNIFORM, QuantizationScheme.LLOYD, QuantizationScheme.NORMAL)
"""Schemes whose scales may be any number."""

NORMS = frozenset({aten.layer_norm.default, aten.group_norm.default})
"""Norms whose affine parameters are learned."""


class LearnedWeight:
    """Codes, scales and bias of one weight.

    Codes follow the gradient of the weight as if they were not rounded; codebooks whose points lie apart by orders of
    magnitude (log2), or are two, stay as they are.

    Attributes:
        codes: Latent codes: the weight in least steps, not rounded.
        log_factor: Logarithm of the change of each scale.
        bias_change: Change of the bias, in units of ``bias_unit``.
        bias_unit: Root mean square of the output of the operation.
    """

    def __init__(self, original: Tensor | None, bias: Tensor | None, start: QuantizedWeight) -> None:
        assert original is not None, "only operations with a weight are fitted"
        self._start = start
        params = start.params
        self.is_learned = learns_codes(params)
        scale, zero_point = (by_element(values, params, original) for values in (params.scale, params.zero_point))
        self._step = params.least_step
        scale = scale * self._step
        codes = start.weight / scale
        self._lattice = lattice_of(params, zero_point=zero_point)
        distance = (original / scale - codes).clamp(-STEPS_FROM_ROUNDING, STEPS_FROM_ROUNDING)
        self.codes = (codes + distance).requires_grad_(self.is_learned)
        self.log_factor = torch.zeros_like(params.scale, requires_grad=params.scheme in LEARNED_SCALES)
        first = start.bias if start.bias is not None else bias
        self._bias = torch.zeros(original.shape[0]) if first is None else first
        self.bias_change = torch.zeros_like(self._bias, requires_grad=True)
        self.bias_unit = 0.0

    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        if not self.is_learned:
            return self._start.weight
        codes = self.codes + (self._rounded() - self.codes.detach())
        return codes * (by_element(self._scale(), self._start.params, codes) * self._step)

    def bias(self) -> Tensor:
        """The bias that goes with it."""
        return self._bias + self.bias_change * self.bias_unit

    @torch.no_grad()
    def result(self) -> QuantizedWeight:
        """What was learned."""
        start = self._start
        params = replace(start.params, scale=self._scale())
        weight = start.weight
        if self.is_learned:
            points = self._lattice.nearest_(self.codes.detach() * self._step)
            weight = points * by_element(params.scale, params, self.codes)
        return replace(start, weight=weight, params=params, bias=self.bias().clone(), steps=(*start.steps, "distilled"))

    def _rounded(self) -> Tensor:
        return self._lattice.nearest_(self.codes.detach() * self._step).div_(self._step)

    def _scale(self) -> Tensor:
        return self._start.params.scale * self.log_factor.exp()


def learns_codes(params: QuantParams) -> bool:
    """Whether codes can follow a gradient: their points lie about evenly."""
    return params.codebook is None or params.scheme is QuantizationScheme.NORMAL


def by_element(values: Tensor, params: QuantParams, weight: Tensor) -> Tensor:
    """Scales or zero points in a shape that broadcasts to the weight."""
    if params.group_size is not None:
        return values.repeat_interleave(params.group_size, dim=1).reshape(weight.shape)
    return values.reshape(-1, *[1] * (weight.ndim - 1)) if params.axis is not None else values


class LearnedQuantizer:
    """A quantizer of activations whose scales are learned.

    Attributes:
        log_factor: Logarithm of the change of each scale.

    References:
        S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153.
    """

    def __init__(self, start: QuantParams) -> None:
        self._start = start
        self.log_factor = torch.zeros_like(start.scale, requires_grad=start.scheme in LEARNED_SCALES)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize, exactly as ``fake_quantize`` does."""
        params, scale = self._start, self._scale()
        first, last = _ends(params)
        zero_point = params.zero_point
        if params.axis is not None:
            shape = [-1 if axis == params.axis else 1 for axis in range(x.ndim)]
            scale, zero_point, first, last = (values.view(shape) for values in (scale, zero_point, first, last))
        lattice = lattice_of(params, zero_point=zero_point)
        quantized: Tensor = _StraightThrough.apply(x, scale, lattice, first, last)  # type: ignore[no-untyped-call]
        return quantized

    def result(self) -> QuantParams:
        """What was learned."""
        return replace(self._start, scale=self._scale().detach())

    def _scale(self) -> Tensor:
        return self._start.scale * self.log_factor.exp()


def _ends(params: QuantParams) -> tuple[Tensor, Tensor]:
    """The least and the greatest point, in units of the scale."""
    points = params.codebook
    first, last = (params.q_min, params.q_max) if points is None else (float(points[0]), float(points[-1]))
    return first - params.zero_point, last - params.zero_point


class LearnedNorm:
    """The weight or the bias of a norm.

    Attributes:
        change: Change of the values, in units of the root mean square of the norm's weight.
    """

    def __init__(self, start: Tensor, unit: float) -> None:
        self._start = start
        self._unit = unit
        self.change = torch.zeros_like(start, requires_grad=True)

    def value(self) -> Tensor:
        """The parameter as it is computed with."""
        return self._start + self.change * self._unit


def learned_norms(program: fx.GraphModule) -> dict[str, LearnedNorm]:
    """The stored affine parameters of all norms, by their path."""
    found = {}
    for node in program.graph.nodes:
        affine = [node.args[at] for at in AFFINE if at < len(node.args)] if node.target in NORMS else []
        paths = [str(stored.target) for stored in affine if is_constant(stored)]
        unit = float(attribute(program, paths[0]).square().mean().sqrt()) if paths else 0.0
        found.update({path: LearnedNorm(attribute(program, path), unit) for path in paths})
    return found


class _StraightThrough(torch.autograd.Function):
    """The nearest point s·L(x/s); its gradients are 1 and L(x/s) − x/s for x and s, beyond the ends 0 and L(x/s)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lattice: Lattice, first: Tensor, last: Tensor) -> Tensor:  # noqa: ANN401
        steps = x * scale.reciprocal()
        is_inside = (steps >= first) & (steps <= last)
        points = lattice.nearest_(steps.clone())
        ctx.save_for_backward(is_inside, points - torch.where(is_inside, steps, 0.0))
        ctx.scale_shape = scale.shape
        return points * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        is_inside, slope = ctx.saved_tensors
        of_scale = (gradients[0] * slope).sum_to_size(ctx.scale_shape)
        return gradients[0] * is_inside, of_scale, None, None, None
