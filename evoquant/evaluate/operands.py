"""Quantized weights and activation quantizers, made once for each choice and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from threading import Lock

from torch import Tensor

from evoquant.calibrate import GELU_MINIMUM, SILU_MINIMUM, Statistics, activation_params, operand_params
from evoquant.calibrate.compensate import QuantizedWeight, SplitError, compensate
from evoquant.calibrate.fisher import LazySamples, OperandKey, OperandSample, operand_key
from evoquant.calibrate.moments import SplitMoments
from evoquant.calibrate.range_by_cost import CostSample, cheapest_activation_params, cheapest_operand_params
from evoquant.calibrate.ranking import ScoreSample
from evoquant.config.quantizers import CompensationSpec
from evoquant.evaluate.native_quantizer import fake_quantizer
from evoquant.graph import CapturedModel
from evoquant.quant import FakeQuant, QuantParams, fake_quantize, weight_params
from evoquant.types import FLOAT_BITS, CalibrationMethod, LayerQuantConfig, Op, Role
from evoquant.types.support import STEP_SCHEMES, UNEVEN_ACTIVATIONS

KNOWN_MINIMA = {"silu": SILU_MINIMUM, "gelu": GELU_MINIMUM}
"""The least value that an activation function can give, by the kind of node."""

KEPT_WEIGHT_BYTES = 1_500_000_000
"""Quantized weights are forgotten, oldest first, beyond this size."""


class OperandCache:
    """What a (operation, precision) pair needs: its quantized weight, and a quantizer for each activation operand.

    Safe to use from several threads: what two threads make at the same time is equal, and one of them is kept.

    Args:
        captured: The floating-point model.
        statistics: Of all operands.
        moments: Of the inputs of operations with a weight: those that have them get the weight whose output error is
            least; the others are rounded to the nearest.
        compensation: How that weight is found.
        samples: Of all operands with gradients, for ranges by ``fisher`` and for log2 and lloyd codes.
        scores: Operands of every product of queries and keys, for ranges by ``ranking``; None: ``fisher`` sets them.
    """

    def __init__(
        self,
        captured: CapturedModel,
        statistics: Statistics,
        *,
        moments: Mapping[str, SplitMoments] | None = None,
        compensation: CompensationSpec | None = None,
        samples: LazySamples[OperandKey, OperandSample] | None = None,
        scores: LazySamples[str, ScoreSample] | None = None,
    ) -> None:
        self.captured = captured
        self.statistics = statistics
        self._samples = samples
        self._scores = scores
        self._moments = moments or {}
        self._compensation = compensation or CompensationSpec()
        self._given: Mapping[tuple[str, LayerQuantConfig], QuantizedWeight] = {}
        self._weights: OrderedDict[tuple[str, LayerQuantConfig], QuantizedWeight] = OrderedDict()
        self._kept_bytes = 0
        self._quantizers: dict[tuple[OperandKey, LayerQuantConfig], FakeQuant] = {}
        self._lock = Lock()

    def weight(self, op: Op, config: LayerQuantConfig) -> Tensor:
        """The weight of ``op``, quantized and dequantized as ``config`` says; the original where it stays float."""
        if config.weight_bits == FLOAT_BITS:
            original = self.captured.weight(op.name)
            assert original is not None, "only operations with a weight are asked for it"
            return original
        return self.quantized_weight(op, config).weight

    def bias(self, op: Op, config: LayerQuantConfig) -> Tensor | None:
        """The bias of ``op`` that goes with its quantized weight; None where it has none."""
        changed = None if config.weight_bits == FLOAT_BITS else self.quantized_weight(op, config).bias
        return self.captured.bias(op.name) if changed is None else changed

    def quantized_weight(self, op: Op, config: LayerQuantConfig) -> QuantizedWeight:
        """The weight of ``op`` with its scales and the bias that goes with it; ``config`` does not leave it float."""
        key = (op.name, weight_part(config))
        if key in self._given:
            return self._given[key]
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
                return self._weights[key]
        made = self._quantized(op, config, self.captured.bias(op.name))
        with self._lock:
            if key not in self._weights:
                self._weights[key] = made
                self._kept_bytes += made.weight.nbytes
            while self._kept_bytes > KEPT_WEIGHT_BYTES and len(self._weights) > 1:
                self._kept_bytes -= self._weights.popitem(last=False)[1].weight.nbytes
            return self._weights.get(key, made)

    def with_weights(
        self, plan: Mapping[str, LayerQuantConfig], weights: Mapping[str, QuantizedWeight]
    ) -> OperandCache:
        """The same operands, but these weights where an operation has the precision that it has in the plan."""
        other = OperandCache(
            self.captured,
            self.statistics,
            moments=self._moments,
            compensation=self._compensation,
            samples=self._samples,
            scores=self._scores,
        )
        with self._lock:
            other._weights, other._kept_bytes = self._weights.copy(), self._kept_bytes
            other._quantizers = self._quantizers.copy()
        other._given = {(name, weight_part(plan[name])): weight for name, weight in weights.items()}
        return other

    def _quantized(self, op: Op, config: LayerQuantConfig, bias: Tensor | None) -> QuantizedWeight:
        """Round one weight; the bias that comes with it contains ``bias``."""
        original = self.captured.weight(op.name)
        assert original is not None, "only operations with a weight are asked for it"
        make_params = partial(weight_params, config=config)
        if op.name not in self._moments:
            params = make_params(original)
            return QuantizedWeight(fake_quantize(original, params), params)
        error = SplitError.of_float_inputs(self._moments[op.name])
        return compensate(op, original, bias, make_params, error, self._compensation)

    def quantizer(self, op: Op, index: int, config: LayerQuantConfig) -> FakeQuant | None:
        """The quantizer of one activation operand of ``op``; None where it stays float."""
        config = activation_part(index, config)
        if config.activation_bits == FLOAT_BITS:
            return None
        key = (operand_key(op, index), config)
        with self._lock:
            known = self._quantizers.get(key)
        if known is not None:
            return known
        made = fake_quantizer(self._params(op, index, config))
        with self._lock:
            return self._quantizers.setdefault(key, made)

    def _params(self, op: Op, index: int, config: LayerQuantConfig) -> QuantParams:
        statistics = self.statistics[op.inputs[index]]
        sample = self._sample(op, index, config)
        if index == 1:
            return cheapest_operand_params(statistics, config, sample) if sample else operand_params(statistics, config)
        lower_bound = KNOWN_MINIMA.get(self.captured.graph.node[op.inputs[index]].kind)
        if sample is None:
            return activation_params(statistics, config, lower_bound=lower_bound)
        return cheapest_activation_params(statistics, config, sample, lower_bound=lower_bound)

    def _sample(self, op: Op, index: int, config: LayerQuantConfig) -> CostSample | None:
        """What an error of the operand costs, where the configuration goes by that."""
        is_uneven = config.activation_scheme in UNEVEN_ACTIVATIONS
        is_by_order = config.calibration_method is CalibrationMethod.RANKING and op.role is Role.ATTENTION_QK
        if is_by_order and self._scores is not None:
            return self._scores[op.name].operand(index)
        is_by_gradient = config.calibration_method in (CalibrationMethod.FISHER, CalibrationMethod.RANKING)
        if self._samples is None or not (is_by_gradient or is_uneven):
            return None
        return self._samples[operand_key(op, index)]


def weight_part(config: LayerQuantConfig) -> LayerQuantConfig:
    """The configuration with everything reset that does not touch the weights.

    Scales of codebooks, but for a power-of-two scale, are found by square error, whatever the calibration method.
    """
    default = LayerQuantConfig()
    has_method = config.weight_scheme in STEP_SCHEMES
    return replace(
        config,
        activation_bits=default.activation_bits,
        activation_scheme=default.activation_scheme,
        use_symmetric=default.use_symmetric,
        calibration_method=config.calibration_method if has_method else default.calibration_method,
        percentile=config.percentile if has_method else default.percentile,
    )


def activation_part(index: int, config: LayerQuantConfig) -> LayerQuantConfig:
    """The configuration with everything reset that does not touch one activation operand.

    The second operand of a matmul takes the place of the weight: it is uniform and symmetric, and has a scale for each
    head where the granularity is per channel. Log2 and lloyd codes are found in one way, whatever the calibration
    method.
    """
    default = LayerQuantConfig()
    reset = replace(
        config,
        weight_bits=default.weight_bits,
        weight_scheme=default.weight_scheme,
        weight_symmetric=default.weight_symmetric,
        granularity=config.granularity if index == 1 else default.granularity,
        group_size=None,
    )
    if index == 1:
        return replace(reset, activation_scheme=default.activation_scheme, use_symmetric=default.use_symmetric)
    if config.activation_scheme in UNEVEN_ACTIVATIONS:
        return replace(reset, calibration_method=default.calibration_method, percentile=default.percentile)
    return reset
