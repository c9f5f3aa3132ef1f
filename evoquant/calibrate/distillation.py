"""Distillation: all that a plan leaves free learns, at once, what the floating-point model answers.

Weights that are fitted one after the other make good what each loses. Here codes, scales, biases and norms follow the
gradient of the divergence of the class probabilities. No labels are needed, so random crops and mixtures of a few
calibration images give as many targets as there are steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from evoquant.calibrate.augment import augmented
from evoquant.calibrate.fisher import OperandKey, operand_key
from evoquant.calibrate.fitted import FittedParameters
from evoquant.calibrate.learned import LearnedQuantizer, LearnedWeight, learned_norms
from evoquant.config.quantizers import DistillationSpec
from evoquant.graph import CapturedModel

BETAS = (0.9, 0.99)
"""Decay of the two moments of Adam: steps are few."""


def distil(
    captured: CapturedModel, start: FittedParameters, images: Tensor, settings: DistillationSpec
) -> FittedParameters:
    """Learn the parameters of a plan from the floating-point model.

    The mean divergence of the quantized from the floating-point class probabilities falls by Adam, whose rates fall to
    zero along a cosine.

    Args:
        captured: The floating-point model; not changed.
        start: Quantized weights and the quantizers of all operands; operations without a weight in it and operands
            without a quantizer stay float.
        images: What is learned from, (images, channels, height, width).
        settings: Steps and rates.

    Returns:
        The same parts, learned.

    References:
        G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531; Z. Liu
        et al., "LLM-QAT", 2023, https://arxiv.org/abs/2305.17888 (quantized models taught without labels).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    student = _Student(captured, start)
    order = _endless(len(images), settings.batch_size, generator)
    with torch.no_grad():
        student.logits(images[: settings.batch_size])
    optimizer = torch.optim.Adam(student.groups(settings), betas=BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.steps, 1))
    for _ in range(settings.steps):
        batch = augmented(images[next(order)], generator)
        target = captured(batch).log_softmax(1).clone()
        with torch.enable_grad():
            answer = student.logits(batch).log_softmax(1)
            loss = F.kl_div(answer, target, log_target=True, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return student.result()


class _Student(fx.Interpreter):
    """The quantized model with all that it learns."""

    def __init__(self, captured: CapturedModel, start: FittedParameters) -> None:
        super().__init__(captured.program)
        self._ops = {op.node: op for op in captured.graph.ops}
        self._weights = {
            name: LearnedWeight(captured.weight(name), captured.bias(name), weight)
            for name, weight in start.weights.items()
        }
        self._quantizers = {key: LearnedQuantizer(params) for key, params in start.activations.items()}
        self._norms = learned_norms(captured.program)
        self._quantized: dict[OperandKey, Tensor] = {}

    def logits(self, images: Tensor) -> Tensor:
        """Logits of shape (images, classes)."""
        self._quantized.clear()
        logits: Tensor = self.run(images)
        return logits

    def groups(self, settings: DistillationSpec) -> list[dict[str, Any]]:
        """What is learned, with its rate."""
        weights = self._weights.values()
        scaled: list[LearnedQuantizer | LearnedWeight] = [*self._quantizers.values(), *weights]
        return [
            {"params": [weight.codes for weight in weights if weight.is_learned], "lr": settings.code_rate},
            {
                "params": [part.log_factor for part in scaled if part.log_factor.requires_grad],
                "lr": settings.scale_rate,
            },
            {"params": [weight.bias_change for weight in weights], "lr": settings.bias_rate},
            {"params": [norm.change for norm in self._norms.values()], "lr": settings.bias_rate},
        ]

    def result(self) -> FittedParameters:
        """What was learned."""
        return FittedParameters(
            {name: weight.result() for name, weight in self._weights.items()},
            {path: norm.value().detach() for path, norm in self._norms.items()},
            {key: quantizer.result() for key, quantizer in self._quantizers.items()},
        )

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute a node with what is learned of it."""
        if n.op == "get_attr" and str(n.target) in self._norms:
            return self._norms[str(n.target)].value()
        op = self._ops.get(n.name)
        if op is None:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        target = cast(Callable[..., Tensor], n.target)
        operands = [self._operand(operand_key(op, index), args[index]) for index in range(len(op.inputs))]
        if op.name not in self._weights:
            return target(*operands, *args[len(operands) :])
        weight = self._weights[op.name]
        out = target(operands[0], weight.weight(), weight.bias(), *args[3:])
        weight.bias_unit = weight.bias_unit or float(out.detach().square().mean().sqrt())
        return out

    def _operand(self, key: OperandKey, x: Tensor) -> Tensor:
        """An operand, quantized once for all operations that share its quantizer."""
        if key not in self._quantizers:
            return x
        if key not in self._quantized:
            self._quantized[key] = self._quantizers[key](x)
        return self._quantized[key]


def _endless(images: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Numbers of images in batches of one size, each image once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < batch:
            order += torch.randperm(images, generator=generator).tolist()
        yield order[:batch]
        order = order[batch:]
