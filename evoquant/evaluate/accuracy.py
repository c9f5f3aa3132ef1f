"""Judging plans on the image sets of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Event, Lock

import numpy as np
import torch
from torch import Tensor, fx

from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.errors import ModelError, RunError
from evoquant.evaluate.metrics import Accuracy, Scores, accuracy_of, require_finite, score_images
from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.simulate import Plan, SimulatedModel

ALL_IMAGES = slice(0, None)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Prepared images of one split, in batches, with the floating-point model's logits.

    Attributes:
        batches: Tensors of shape (batch, channels, height, width).
        labels: Class indices, shape (images,).
        reference: Logits of the floating-point model, shape (images, classes).
    """

    batches: tuple[Tensor, ...]
    labels: Tensor
    reference: Tensor

    @classmethod
    def judged_by(cls, program: fx.GraphModule, batches: tuple[Tensor, ...], labels: Tensor) -> LabelledImages:
        """Run the floating-point program once on all batches.

        Raises:
            ModelError: If its output is not finite, or has fewer classes than the labels name.
        """
        with torch.inference_mode():
            reference = torch.cat([program(batch) for batch in batches])
        if not bool(reference.isfinite().all()):
            raise ModelError("The floating-point model's own output is not finite; check its weights and its images.")
        if int(labels.max()) >= reference.shape[1]:
            raise ModelError(
                f"The labels go up to class {int(labels.max())}, but the model has {reference.shape[1]} classes "
                f"(0 to {reference.shape[1] - 1}). Check data labels and model.num_classes."
            )
        return cls(batches, labels, reference)


class ImageSplits:
    """The image sets by name, each loaded when it is first asked for and then shared."""

    def __init__(self, load: Callable[[str], LabelledImages]) -> None:
        self._load = load
        self._loaded: dict[str, LabelledImages] = {}
        self._lock = Lock()

    def __getitem__(self, split: str) -> LabelledImages:
        with self._lock:
            if split not in self._loaded:
                self._loaded[split] = self._load(split)
            return self._loaded[split]


class AccuracyEvaluator:
    """Evaluates plans one at a time; for evaluations at the same time make clones.

    Quantized are both operands of every convolution, linear layer and attention matmul; norms, softmax internals,
    activation functions, elementwise and residual operations stay in floating point.

    Args:
        model: The simulated model.
        splits: The image sets, shared between clones.
        threads: torch threads of one evaluation. Sums depend on it, so it is part of what a result depends on.
    """

    def __init__(self, model: SimulatedModel, splits: ImageSplits, *, threads: int = 1) -> None:
        self._model = model
        self._splits = splits
        self._threads = threads

    @property
    def operands(self) -> OperandCache:
        """Quantized weights and quantizers, shared with clones."""
        return self._model.operands

    def copy_of_model(self) -> SimulatedModel:
        """A simulated model of one's own, with the threads of this evaluator set."""
        self._set_threads()
        return self._model.clone()

    def images(self, split: str) -> LabelledImages:
        """The prepared images of a split."""
        return self._splits[split]

    def with_weights(self, plan: Plan, weights: Mapping[str, QuantizedWeight]) -> AccuracyEvaluator:
        """An evaluator that judges this plan, and whatever agrees with it, with weights that were fitted to it."""
        operands = self.operands.with_weights(plan, weights)
        return AccuracyEvaluator(SimulatedModel(operands.captured, operands), self._splits, threads=self._threads)

    def clone(self) -> AccuracyEvaluator:
        """Another evaluator for a concurrent evaluation."""
        return AccuracyEvaluator(self._model.clone(), self._splits, threads=self._threads)

    def logits(self, plan: Plan, *, split: str, stop: Event | None = None) -> Tensor:
        """Logits of the quantized model on one image set, shape (images, classes).

        Raises:
            RunError: If ``stop`` is set before the last batch.
        """
        return torch.cat(list(self._logits(plan, self._splits[split].batches, stop)))

    def _logits(self, plan: Plan, batches: Sequence[Tensor], stop: Event | None) -> Iterator[Tensor]:
        self._set_threads()
        self._model.apply(plan)
        for batch in batches:
            if stop is not None and stop.is_set():
                raise RunError("The evaluation was stopped.")
            yield self._model(batch)

    def _set_threads(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def scores(self, plan: Plan, *, split: str, images: slice = ALL_IMAGES, stop: Event | None = None) -> Scores:
        """Score one plan on some images of the named set.

        Every batch is scored alone, so the scores of two parts are those of the whole to the last bit.

        Args:
            plan: The plan.
            split: The image set.
            images: Which of them: from the start of a batch to the end of a batch.
            stop: When set, give up.

        Raises:
            ModelError: If the quantized model's output is not finite.
            PrecisionError: If an operation cannot have its precision.
            RunError: If ``stop`` is set before the end, or ``images`` cuts through a batch.
        """
        labelled = self._splits[split]
        start, end, _ = images.indices(len(labelled.labels))
        bounds = list(accumulate(map(len, labelled.batches), initial=0))
        if start not in bounds or end not in bounds or start >= end:
            raise RunError(f"Images {start} to {end} of {split} are no whole batches: these end at {bounds[1:]}.")
        chosen = labelled.batches[bounds.index(start) : bounds.index(end)]
        scores, position = [], start
        for logits in self._logits(plan, chosen, stop):
            part = slice(position, position + len(logits))
            scores.append(score_images(logits, labelled.reference[part], labelled.labels[part]))
            position = part.stop
        joined = np.concatenate(scores)
        require_finite(joined, start=start)
        return joined

    def evaluate(self, plan: Plan, *, split: str, stop: Event | None = None) -> Accuracy:
        """Judge one plan on the named image set.

        Raises:
            ModelError: If the quantized model's output is not finite.
            PrecisionError: If an operation cannot have its precision.
            RunError: If ``stop`` is set before the end.
        """
        return accuracy_of(self.scores(plan, split=split, stop=stop))


def splits_of(images: Mapping[str, LabelledImages]) -> ImageSplits:
    """Image sets that are already in memory."""
    return ImageSplits(lambda split: images[split])
