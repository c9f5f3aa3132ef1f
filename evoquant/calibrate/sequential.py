"""Fitting the weights of a whole plan in the order of computation, each to the inputs that it will really get.

The floating-point program and the quantized one run side by side, node by node, on all calibration images at once. At
each operation with a weight both inputs are known: the weight is fitted so that the quantized input gives the
floating-point output, and the quantized run goes on with what was found. The whole plan costs a few forward passes and
the fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from evoquant.calibrate.block_run import BlockRun, WeightPart
from evoquant.calibrate.compensate import QuantizedWeight, SplitError, compensate
from evoquant.calibrate.importance import Importance
from evoquant.calibrate.moments import HELD_OUT_EVERY, has_moments, too_few_images
from evoquant.calibrate.output_error import ErrorAccumulator
from evoquant.calibrate.rounding import BlockImages, learn_rounding
from evoquant.calibrate.segment import Segment, narrow_places
from evoquant.config.quantizers import CompensationSpec, RoundingSpec
from evoquant.graph import CapturedModel
from evoquant.quant import fake_quantize, weight_params
from evoquant.types import FLOAT_BITS, LayerQuantConfig, Op

Quantizer = Callable[[Tensor], Tensor]
MakeQuantizer = Callable[[Op, int, LayerQuantConfig], Quantizer | None]
"""Makes the quantizer of one operand of an operation; None where it stays float."""

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""An operation as a function of its input, weight and bias."""

IMAGES_AT_ONCE = 8
"""Images that a node computes at a time."""


def fit_sequentially(
    captured: CapturedModel,
    plan: Mapping[str, LayerQuantConfig],
    batches: Sequence[Tensor],
    quantizer: MakeQuantizer,
    settings: CompensationSpec,
    *,
    share_of_float: float = 1.0,
    rounding: RoundingSpec | None = None,
    importance: Importance | None = None,
    on_op: Callable[[str, QuantizedWeight], None] | None = None,
) -> dict[str, QuantizedWeight]:
    """Quantize the weights of a plan one after the other, with quantized inputs and floating-point targets.

    Args:
        captured: The floating-point model; not changed.
        plan: Precision of every operation.
        batches: Calibration images; all of them are in memory at once, with the tensors of one node.
        quantizer: Makes quantizers of activations.
        settings: What to try at each weight.
        share_of_float: What an operation is fitted to: this share of its output in the floating-point network, and for
            the rest what it would give if it, alone in the quantized network, were not quantized. 1 makes good what
            was lost before it as well, 0 only what itself loses.
        rounding: How the rounding of a block is learned when all of its weights are fitted; None: it is not.
        importance: Of the positions of the outputs on these images; None or empty: all are alike.
        on_op: Told of each weight that is fitted.

    Returns:
        By operation, those whose weight is not float.

    Raises:
        DataError: If there are fewer than ``HELD_OUT_EVERY`` images.
    """
    images = torch.cat(list(batches))
    if len(images) < HELD_OUT_EVERY:
        raise too_few_images(len(images))
    fitting = _SideBySide(captured, plan, quantizer, settings, share_of_float, rounding, importance or {}, on_op)
    with torch.no_grad():
        fitting.fit(images)
    return fitting.weights


@dataclass(frozen=True, slots=True)
class _Pair:
    """One value in the floating-point run and in the quantized run, piece by piece of the images."""

    original: list[Any]
    quantized: list[Any]

    def of(self, *, is_quantized: bool) -> list[Any]:
        return self.quantized if is_quantized else self.original


@dataclass(slots=True)
class _Block:
    """The nodes since the last narrow place, with the input that they got in the quantized run."""

    source: fx.Node | None = None
    inputs: list[Any] = field(default_factory=list)
    known: dict[fx.Node, Any] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)


class _SideBySide(fx.Interpreter):
    """Runs the program for both, and fits weights on the way."""

    def __init__(
        self,
        captured: CapturedModel,
        plan: Mapping[str, LayerQuantConfig],
        quantizer: MakeQuantizer,
        settings: CompensationSpec,
        share_of_float: float,
        rounding: RoundingSpec | None,
        importance: Importance,
        on_op: Callable[[str, QuantizedWeight], None] | None,
    ) -> None:
        super().__init__(captured.program)
        self.weights: dict[str, QuantizedWeight] = {}
        self._captured = captured
        self._plan = plan
        self._quantizer = quantizer
        self._settings = settings
        self._share_of_float = share_of_float
        self._rounding = rounding
        self._importance = importance
        self._on_op = on_op
        self._ops = {op.node: op for op in captured.graph.ops}
        self._is_held_out: list[bool] = []
        self._block = _Block()
        self._narrow = narrow_places(captured) if rounding is not None and rounding.iterations else frozenset()

    def fit(self, images: Tensor) -> None:
        """Run all images through both programs."""
        found = _pieces(images)
        self._is_held_out = [is_held_out for _, is_held_out in found]
        pieces = [piece for piece, _ in found]
        self.run(_Pair(pieces, pieces))

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute a node in both runs; at the end of a block learn the rounding of its weights."""
        value = self._computed(n)
        self._block.nodes.append(n)
        if n.name not in self._narrow:
            return value
        if self._block.source is not None:
            names = [self._ops[node.name].name for node in self._block.nodes if node.name in self._ops]
            if self.weights.keys().isdisjoint(names):
                return value
            value = self._learned(value)
        known = {node: kept for node, kept in self.env.items() if node.name not in self._captured.graph.node}
        self._block = _Block(n, value.quantized, known)
        return value

    def _learned(self, value: _Pair) -> _Pair:
        """Learn the block that ends here, and go on with its new output."""
        block, rounding = self._block, self._rounding
        assert block.source is not None, "a block has an input"
        assert rounding is not None, "there are narrow places only where rounding is learned"
        ops = {node.name: self._ops[node.name] for node in block.nodes if node.name in self._ops}
        segment = Segment(self._captured.program, tuple(block.nodes), block.source, ops)
        pieces = range(len(self._is_held_out))
        known = [
            {node: _piece(kept, index, is_quantized=True) for node, kept in block.known.items()} for index in pieces
        ]
        weighted = [op for op in ops.values() if op.weight_count]
        originals = {op.name: (self._weight(op), self._captured.bias(op.name)) for op in weighted}
        targets = value.original
        if self._share_of_float != 1.0:
            unquantized = BlockRun(segment, {}, originals, {})
            alone = [unquantized(x, known[index]) for index, x in enumerate(block.inputs)]
            targets = [torch.lerp(*pair, self._share_of_float) for pair in zip(alone, targets, strict=True)]
        images = BlockImages(block.inputs, targets, known, self._is_held_out)
        fitted = {op.name: self.weights[op.name] for op in weighted if op.name in self.weights}
        quantizers = {
            (op.name, index): self._quantizer(op, index, self._plan[op.name])
            for op in ops.values()
            for index in range(len(op.inputs))
        }
        learned = learn_rounding(segment, images, originals, fitted, quantizers, rounding)
        if not learned.weights:
            return value
        self.weights.update(learned.weights)
        parts = {name: WeightPart(stored, originals[name][1]) for name, stored in {**fitted, **learned.weights}.items()}
        run = BlockRun(segment, parts, originals, quantizers)
        return _Pair(value.original, [run(x, known[index]) for index, x in enumerate(block.inputs)])

    def _weights_of(self, op: Op) -> list[Tensor | None]:
        """Importance of the positions of an output, piece by piece; None where all are alike."""
        importance = self._importance.get(op.name)
        return [None] * len(self._is_held_out) if importance is None else [piece for piece, _ in _pieces(importance)]

    def _weight(self, op: Op) -> Tensor:
        weight = self._captured.weight(op.name)
        assert weight is not None, "the operation has a weight"
        return weight

    def _computed(self, n: fx.Node) -> Any:  # noqa: ANN401
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        target = cast(Callable[..., Any], n.target)
        pairs = [value for value in (*args, *kwargs.values()) if _holds_pair(value)]
        if not pairs:
            return target(*args, **kwargs)

        def pieces(*, is_quantized: bool) -> list[Any]:
            choose = partial(_piece, is_quantized=is_quantized)
            indices = range(len(self._is_held_out))
            return [target(*choose(args, index), **choose(kwargs, index)) for index in indices]

        original = pieces(is_quantized=False)
        op = self._ops.get(n.name)
        if op is None:
            return _Pair(original, pieces(is_quantized=True))
        operands = [self._operand(op, index, args[index]) for index in range(len(op.inputs))]
        if not op.weight_count:
            return _Pair(original, [target(*pair) for pair in zip(*operands, strict=True)])
        apply = partial(_apply, target, args[3:])
        return _Pair(original, self._weighted(op, operands[0], self._targets(op, original, args[0], apply), apply))

    def _targets(self, op: Op, original: list[Tensor], inputs: _Pair, apply: Apply) -> list[Tensor]:
        """What an operation with a weight is fitted to."""
        share = self._share_of_float
        if share == 1.0 or inputs.quantized is inputs.original:
            return original
        weight, bias = self._weight(op), self._captured.bias(op.name)
        return [
            torch.lerp(apply(x, weight, bias), expected, share)
            for x, expected in zip(inputs.quantized, original, strict=True)
        ]

    def _operand(self, op: Op, index: int, pair: _Pair) -> list[Tensor]:
        quantizer = self._quantizer(op, index, self._plan[op.name])
        return pair.quantized if quantizer is None else [quantizer(piece) for piece in pair.quantized]

    def _weighted(self, op: Op, inputs: list[Tensor], targets: list[Tensor], apply: Apply) -> list[Tensor]:
        """Fit the weight of an operation and compute its output with it."""
        weight, bias = self._weight(op), self._captured.bias(op.name)
        config = self._plan[op.name]
        if config.weight_bits == FLOAT_BITS:
            return [apply(piece, weight, bias) for piece in inputs]
        found = self._fitted(op, weight, bias, inputs, targets, apply)
        self.weights[op.name] = found
        if self._on_op is not None:
            self._on_op(op.name, found)
        return [apply(piece, found.weight, bias if found.bias is None else found.bias) for piece in inputs]

    def _fitted(
        self,
        op: Op,
        weight: Tensor,
        bias: Tensor | None,
        inputs: list[Tensor],
        targets: list[Tensor],
        apply: Apply,
    ) -> QuantizedWeight:
        make_params = partial(weight_params, config=self._plan[op.name])
        if not has_moments(op):
            params = make_params(weight)
            return QuantizedWeight(fake_quantize(weight, params), params)
        sums = ErrorAccumulator(op), ErrorAccumulator(op)
        weights = self._weights_of(op)
        for piece, expected, count, is_held_out in zip(inputs, targets, weights, self._is_held_out, strict=True):
            sums[is_held_out].update(piece, expected - apply(piece, weight, bias), count)
        error = SplitError(*(part.finish() for part in sums))
        return compensate(op, weight, bias, make_params, error, self._settings)


def _pieces(images: Tensor) -> list[tuple[Tensor, bool]]:
    """What belongs to the images in pieces, the fitted ones first, and whether a piece is held out."""
    mask = (torch.arange(len(images)) + 1) % HELD_OUT_EVERY == 0
    fitted, held_out = (torch.split(images[chosen], IMAGES_AT_ONCE) for chosen in (~mask, mask))
    return [*((piece, False) for piece in fitted), *((piece, True) for piece in held_out)]


def _apply(
    target: Callable[..., Tensor], rest: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return target(x, weight, bias, *rest)


def _piece(arguments: Any, index: int, *, is_quantized: bool) -> Any:  # noqa: ANN401
    """Arguments with each pair replaced by one piece of one run."""
    return fx.node.map_aggregate(
        arguments, lambda value: value.of(is_quantized=is_quantized)[index] if isinstance(value, _Pair) else value
    )


def _holds_pair(value: Any) -> bool:  # noqa: ANN401
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda item: found.append(isinstance(item, _Pair)))
    return any(found)
