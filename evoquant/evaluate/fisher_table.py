"""What every choice of every group does to the output, to second order: one backward pass in place of many probes.

A small error in the weights or the activations of a group moves the logits by ``J Δ``, and the divergence of the
class probabilities grows by half of ``E[(v·J Δ)²]``, v a random direction of the Fisher matrix. ``v·J`` are gradients
that one backward pass gives for every operand and every weight at once, so that a choice costs its quantization and a
scalar product: no probe runs the network. Each image is taken apart, and a choice is taken to be the sum of its two
sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evoquant.calibrate.fisher import GradientPass, OperandKey, gradient_of, operand_key
from evoquant.calibrate.moments import unfolded
from evoquant.errors import RunError
from evoquant.evaluate.accuracy import AccuracyEvaluator
from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.probes import USELESS_KL, ProbeTable
from evoquant.evaluate.sides import Side, sides_of
from evoquant.space import SearchSpace
from evoquant.types import ModelGraph, Op

DIRECTIONS = 4
"""Random directions of each image."""

IMAGES_AT_ONCE = 4
"""Images of one backward pass: the gradients of all directions are in memory with it."""

Floats = NDArray[np.float64]


def fisher_choices(
    evaluator: AccuracyEvaluator,
    space: SearchSpace,
    *,
    images: int = 32,
    split: str = "selection",
    workers: int = 1,
    stop: Event | None = None,
) -> ProbeTable:
    """Judge the choices of every group by the Fisher form of the floating-point model.

    Args:
        evaluator: Has the model, its images and its quantized operands.
        space: The choices.
        images: How many images to judge with, from the first one on.
        split: Their image set.
        workers: Threads that share the images; the answer does not depend on it.
        stop: When set, give up.

    Returns:
        The table; a group with a single choice has 0.

    Raises:
        RunError: If ``stop`` is set before the end.
    """
    plans = [space.choice_plans(position) for position in range(len(space.groups))]
    judged = {position: choices for position, choices in enumerate(plans) if len(choices) > 1}
    sides = {position: sides_of(space.graph, choices) for position, choices in judged.items()}
    count = min(images, len(evaluator.images(split).labels))
    found = fisher_errors(
        evaluator, space.graph, list(sides.values()), images=count, split=split, workers=workers, stop=stop
    )
    errors = dict(zip(judged, found, strict=True))
    weighted = sum(op.macs for op in space.graph.ops if op.weight_count) / max(space.graph.macs, 1)
    return ProbeTable(
        groups=tuple(group.name for group in space.groups),
        errors=tuple(errors.get(position, (0.0,) * len(choices)) for position, choices in enumerate(plans)),
        probes=sum(len(side.parts) for pair in sides.values() for side in pair),
        images=count,
        passes=count * (1 + DIRECTIONS * (1 + weighted)),
    )


def fisher_errors(
    evaluator: AccuracyEvaluator,
    graph: ModelGraph,
    sides: Sequence[tuple[Side, Side]],
    *,
    images: int,
    split: str,
    workers: int = 1,
    stop: Event | None = None,
) -> list[tuple[float, ...]]:
    """For each group the divergence, in nats, that each of its choices adds to second order.

    Args:
        evaluator: Has the model, its images and its quantized operands.
        graph: The model.
        sides: Of the choices of each group.
        images: How many images to judge with, from the first one on.
        split: Their image set.
        workers: Threads that share the images; the answer does not depend on it.
        stop: When set, give up.

    Raises:
        RunError: If ``stop`` is set before the end.
    """
    batches = torch.split(torch.cat(list(evaluator.images(split).batches))[:images], IMAGES_AT_ONCE)

    def judge(index: int) -> list[Floats]:
        errors = _BatchErrors.of(evaluator.operands, batches[index], seed=index)
        found: dict[int, Floats] = {}
        # Every other batch goes backwards: two threads then do not make the same weights, and the weights that are
        # kept, if not all can be, are those that the next batch begins with.
        for group in range(len(sides))[:: -1 if index % 2 else 1]:
            if stop is not None and stop.is_set():
                raise RunError("The judgement of the choices was stopped.")
            found[group] = errors.of_choices(graph, sides[group])
        return [found[group] for group in range(len(sides))]

    with ThreadPoolExecutor(workers, thread_name_prefix="fisher") as pool:
        totals = [np.sum(parts, axis=0) for parts in zip(*pool.map(judge, range(len(batches))), strict=True)]
    scale = 0.5 / (DIRECTIONS * sum(map(len, batches)))
    return [tuple(np.minimum(scale * total, USELESS_KL).tolist()) for total in totals]


@dataclass(frozen=True, slots=True, eq=False)
class _BatchErrors:
    """The gradients of one batch, and what quantization does along them.

    Attributes:
        operands: Quantizes.
        values: Every operand, images on axis 0.
        of_operands: Its gradients, (directions, ...).
        of_outputs: Those of the outputs of operations with a weight.
        images: Size of the batch.
    """

    operands: OperandCache
    values: dict[OperandKey, Tensor]
    of_operands: dict[OperandKey, Tensor]
    of_outputs: dict[str, Tensor]
    images: int

    @classmethod
    def of(cls, operands: OperandCache, images: Tensor, *, seed: int) -> Self:
        run = GradientPass(operands.captured, images)
        generator = torch.Generator().manual_seed(seed)
        of_operands: dict[OperandKey, list[Tensor]] = {key: [] for key in run.operands}
        of_outputs: dict[str, list[Tensor]] = {name: [] for name in run.outputs}
        for _ in range(DIRECTIONS):
            run.back(generator)
            for key, (operand, _) in run.operands.items():
                of_operands[key].append(gradient_of(operand))
            for name, output in run.outputs.items():
                of_outputs[name].append(gradient_of(output))
        return cls(
            operands,
            {key: operand.detach() for key, (operand, _) in run.operands.items()},
            {key: torch.stack(gradients) for key, gradients in of_operands.items()},
            {name: torch.stack(gradients) for name, gradients in of_outputs.items()},
            len(images),
        )

    @torch.no_grad()
    def of_choices(self, graph: ModelGraph, sides: tuple[Side, Side]) -> Floats:
        """For each choice of a group the square of what it moves, summed over directions and images."""
        ops = graph.op
        total = np.zeros(len(sides[0].of_choice))
        for side, moved in zip(
            sides, (self._by_weights(sides[0], ops), self._by_activations(sides[1], ops)), strict=True
        ):
            total += moved.double().square().sum(dim=1).nan_to_num(nan=np.inf).numpy()[list(side.of_choice)]
        return total

    def _by_weights(self, side: Side, ops: Mapping[str, Op]) -> Tensor:
        total = torch.zeros(len(side.parts), DIRECTIONS * self.images)
        for place, (name, _) in enumerate(side.parts[0]):
            op = ops[name]
            weight, bias = self.operands.captured.weight(name), self.operands.captured.bias(name)
            assert weight is not None, "only operations with a weight have this side"
            configs = [part[place][1] for part in side.parts]
            changes = torch.stack([self.operands.weight(op, config).flatten() for config in configs])
            of_weight, of_bias = self._weight_gradients(op)
            total += changes.sub_(weight.flatten()) @ of_weight.T
            biases = [self.operands.bias(op, config) for config in configs]
            shifts = [torch.zeros(len(weight)) if changed is None else changed for changed in biases]
            total += torch.stack(shifts).sub_(torch.zeros(len(weight)) if bias is None else bias) @ of_bias.T
        return total

    def _weight_gradients(self, op: Op) -> tuple[Tensor, Tensor]:
        """Of each direction and image: (directions · images, weights) and (directions · images, outputs)."""
        values, gradients = self.values[operand_key(op, 0)], self.of_outputs[op.name]
        if op.geometry is None:
            rows = values.reshape(self.images, -1, values.shape[-1])
            lacking = gradients.reshape(DIRECTIONS, self.images, -1, gradients.shape[-1])
            of_weight = lacking.transpose(2, 3) @ rows
            of_bias = lacking.sum(dim=2)
        else:
            groups = op.geometry.groups
            columns = unfolded(values, op)
            columns = columns.reshape(len(values), groups, -1, columns.shape[-1]).transpose(2, 3)
            lacking = gradients.reshape(DIRECTIONS, len(values), groups, -1, columns.shape[2])
            of_weight = (lacking @ columns).reshape(DIRECTIONS, self.images, -1, op.weight_count).sum(dim=2)
            of_bias = lacking.sum(dim=-1).reshape(DIRECTIONS, self.images, -1, op.weight_shape[0]).sum(dim=2)
        return of_weight.reshape(DIRECTIONS * self.images, -1), of_bias.reshape(DIRECTIONS * self.images, -1)

    def _by_activations(self, side: Side, ops: Mapping[str, Op]) -> Tensor:
        total = torch.zeros(len(side.parts), DIRECTIONS, self.images)
        for key, op, index, place in _operands(side.parts[0], ops):
            values = self.values[key]
            gradients = self.of_operands[key].reshape(DIRECTIONS, self.images, -1)
            for row, part in enumerate(side.parts):
                quantizer = self.operands.quantizer(op, index, part[place][1])
                if quantizer is not None:
                    error = (quantizer(values) - values).reshape(self.images, -1, 1)
                    total[row] += (gradients.transpose(0, 1) @ error)[:, :, 0].T
        return total.flatten(1)


def _operands(part: Sequence[tuple[str, object]], ops: Mapping[str, Op]) -> list[tuple[OperandKey, Op, int, int]]:
    """Every operand that the operations of a part read, once: its key, an operation with its index, and its place."""
    found: dict[OperandKey, tuple[OperandKey, Op, int, int]] = {}
    for place, (name, _) in enumerate(part):
        for index in range(len(ops[name].inputs)):
            key = operand_key(ops[name], index)
            found.setdefault(key, (key, ops[name], index, place))
    return list(found.values())
