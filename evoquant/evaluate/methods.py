"""Published ways to quantize, as settings of ours: what a full stack is compared with.

They share everything that their papers do not name: images, folded batch norms, integer grids, and 8 bits for stem and
head. None is the authors' code, so each is called a *type*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from evoquant.config import Experiment
from evoquant.config.preparation import RescalingStep
from evoquant.config.quantizers import CompensationSpec, RoundingSpec, TuningSpec
from evoquant.errors import UnknownNameError
from evoquant.evaluate.metrics import divergence
from evoquant.evaluate.simulate import Plan
from evoquant.evaluate.workbench import Workbench
from evoquant.space import UNIFORM_PRESETS, canonical, preset_plan, uniform_plan
from evoquant.space.presets import equal_steps_plan
from evoquant.types import (
    CalibrationMethod,
    LayerQuantConfig,
    QuantizationGranularity,
    QuantizationScheme,
    Role,
)
from evoquant.types.precision import MAX_LOG2_BITS

PRECISIONS = tuple(name for name in UNIFORM_PRESETS if name != "fp32")
"""Those that a method that has a free choice is judged at."""

BRIDGE_IMAGES = 16
"""Calibration images that the choices for bridges are judged on."""

_PLAIN = CompensationSpec(weight_compensation="none", bias_correction=False, ridges=())


@dataclass(frozen=True, slots=True)
class Method:
    """A way to quantize.

    Attributes:
        name: What it is called in tables.
        about: What it consists of, in a few words.
        make_plan: The plan at a uniform precision (a name of ``PRECISIONS``).
        is_free: Whether it exists at each precision; else it has one plan.
        rescaling: Steps of preparation; None: those of the experiment.
        compensation: How weights are rounded; None: as the experiment says.
        is_fitted: Whether the weights are fitted to the plan as a whole.
    """

    name: str
    about: str
    make_plan: Callable[[Workbench, str], Plan]
    is_free: bool = True
    rescaling: tuple[RescalingStep, ...] | None = None
    compensation: CompensationSpec | None = None
    is_fitted: bool = False

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment with the settings of this method."""
        changes: dict[str, object] = {}
        if self.rescaling is not None:
            changes["preparation"] = experiment.preparation.model_copy(update={"rescaling": self.rescaling})
        if self.compensation is not None:
            changes["compensation"] = self.compensation
        return experiment.model_copy(update=changes)


def _preset(bench: Workbench, precision: str) -> Plan:
    return preset_plan(precision, bench.captured.graph, bench.classes)


def uniform_by(method: CalibrationMethod) -> Callable[[Workbench, str], Plan]:
    """The plans at uniform precisions whose ranges are set by one method."""

    def plan(bench: Workbench, precision: str) -> Plan:
        graph = bench.captured.graph
        uniform = uniform_plan(graph, *UNIFORM_PRESETS[precision])
        return {op.name: canonical(op, replace(uniform[op.name], calibration_method=method)) for op in graph.ops}

    return plan


def in_equal_steps(make_plan: Callable[[Workbench, str], Plan]) -> Callable[[Workbench, str], Plan]:
    """The same plans with uniform codes for all activations, the output of a softmax too."""

    def plan(bench: Workbench, precision: str) -> Plan:
        return equal_steps_plan(bench.captured.graph, make_plan(bench, precision))

    return plan


def _log2(bench: Workbench, _precision: str) -> Plan:
    """Weights and softmax outputs as powers of two; other activations have signs or zeros, and 8 uniform bits."""
    weights = LayerQuantConfig(weight_bits=MAX_LOG2_BITS, weight_scheme=QuantizationScheme.LOG2)
    softmax = LayerQuantConfig(
        activation_bits=MAX_LOG2_BITS,
        activation_scheme=QuantizationScheme.LOG2,
        granularity=QuantizationGranularity.PER_TENSOR,
    )
    graph = bench.captured.graph
    return {op.name: canonical(op, softmax if op.role is Role.ATTENTION_AV else weights) for op in graph.ops}


def _bridge(bench: Workbench, precision: str) -> Plan:
    """For each bridge the granularity and symmetry with the least divergence, one after the other."""
    graph = bench.captured.graph
    plan = dict(uniform_by(CalibrationMethod.FISHER)(bench, precision))
    images = bench.calibration.inputs(0, min(BRIDGE_IMAGES, len(bench.calibration)))
    reference = bench.captured(images)
    model = bench.evaluator.copy_of_model()
    granularities = (QuantizationGranularity.PER_CHANNEL, QuantizationGranularity.PER_TENSOR)
    for op in graph.ops:
        if op.role is not Role.BRIDGE:
            continue
        choices = [
            canonical(op, replace(plan[op.name], granularity=granularity, use_symmetric=is_symmetric))
            for granularity in granularities
            for is_symmetric in (False, True)
        ]
        losses = []
        for choice in choices:
            model.apply({**plan, op.name: choice})
            losses.append(float(divergence(model(images), reference).mean()))
        plan[op.name] = choices[int(torch.tensor(losses).argmin())]
    return plan


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("fp32", "the floating-point model", lambda bench, _: _preset(bench, "fp32"), is_free=False),
        Method(
            "minmax",
            "uniform, ranges from the extremes",
            in_equal_steps(uniform_by(CalibrationMethod.MIN_MAX)),
            rescaling=(),
            compensation=_PLAIN,
        ),
        Method("log2", "weights and softmax in powers of two", _log2, False, (), _PLAIN),
        Method(
            "efficientquant",
            "uniform convolutions, log2 transformer",
            lambda bench, _: _preset(bench, "efficientquant"),
            is_free=False,
            rescaling=(),
            compensation=_PLAIN,
        ),
        Method("bridge", "Q-HyViT-type: Fisher ranges, bridges chosen", _bridge, True, ("depthwise",), _PLAIN),
        Method("repq", "RepQ-type: norms rescaled", uniform_by(CalibrationMethod.MSE), True, ("norms",), _PLAIN),
        Method(
            "erq",
            "ERQ-type: norms rescaled, ridge and compensation",
            uniform_by(CalibrationMethod.MSE),
            rescaling=("norms",),
            compensation=CompensationSpec(
                gradient_share=0.0,
                scale_fractions=(),
                rounding=RoundingSpec(iterations=0),
                tuning=TuningSpec(steps=0),
            ),
            is_fitted=True,
        ),
        Method("full", "all steps of the experiment", _preset),
        Method("learned", "all steps, and weights fitted to the plan", _preset, is_fitted=True),
    )
}
"""By name, in the order of tables."""

CHEAP_METHODS = tuple(name for name, method in METHODS.items() if not method.is_fitted)
"""Those that take no longer than calibration does."""


def find_method(name: str) -> Method:
    """A method by its name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, tuple(METHODS))
    return METHODS[name]
