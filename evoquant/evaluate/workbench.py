"""From an experiment to everything that its candidates are judged with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from evoquant import models
from evoquant.calibrate import Statistics, collect, load_or_collect, statistics_key
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.calibrate.fisher import LazySamples, OperandKey, OperandSample, sample_operands
from evoquant.calibrate.importance import GRADIENT_BATCH, position_importance
from evoquant.calibrate.moments import SplitMoments, collect_moments
from evoquant.calibrate.moments_cache import load_or_collect_moments, moments_key
from evoquant.calibrate.ranking import IMAGES as SCORE_IMAGES
from evoquant.calibrate.ranking import ScoreSample, sample_scores
from evoquant.config import Experiment, ImageSet, experiment_hash
from evoquant.data import ImageBatchSource, Transform, check_disjoint, load_images
from evoquant.errors import ConfigurationError
from evoquant.evaluate.accuracy import AccuracyEvaluator, ImageSplits, LabelledImages
from evoquant.evaluate.operands import OperandCache
from evoquant.evaluate.prepare_model import FORMAT_VERSION as PREPARATION_VERSION
from evoquant.evaluate.prepare_model import PreparationReport, improve
from evoquant.evaluate.simulate import Plan, SimulatedModel
from evoquant.graph import CapturedModel, capture, efficientquant_classes, graph_hash
from evoquant.resources import cache_folder, folder

Notify = Callable[[str, str], None]
"""Called with the stage that begins and a detail."""

SPLITS = ("calibration", "selection", "test")


@dataclass(frozen=True)
class Workbench:
    """A captured and calibrated model with the image sets that judge it.

    Attributes:
        experiment: What was asked for.
        captured: The floating-point model.
        statistics: Of every operand, over the calibration images.
        evaluator: Judges plans on the selection and test images.
        classes: ``cnn`` or ``transformer`` for each operation, by the published EfficientQuant rule.
        identity: Hashes by name of everything that a result depends on.
        calibration: The images that everything is fitted to.
        preparation: What was done to the model before any precision was chosen.
    """

    experiment: Experiment
    captured: CapturedModel
    statistics: Statistics
    evaluator: AccuracyEvaluator
    classes: Mapping[str, str]
    identity: Mapping[str, str]
    calibration: ImageBatchSource
    preparation: PreparationReport

    def with_weights(self, plan: Plan, weights: Mapping[str, QuantizedWeight]) -> Workbench:
        """The same images for the model with weights that were fitted to a plan: what is judged or packed."""
        return replace(self, evaluator=self.evaluator.with_weights(plan, weights))

    def for_experiment(self, experiment: Experiment) -> Workbench:
        """The same model and images for an experiment that differs in device, space or search only."""
        return replace(self, experiment=experiment)


def prepare(
    experiment: Experiment,
    *,
    model: nn.Module | None = None,
    images: Mapping[str, ImageBatchSource] | None = None,
    notify: Notify | None = None,
) -> Workbench:
    """Load, capture and calibrate.

    Args:
        experiment: What to prepare.
        model: Used instead of the model that the experiment names.
        images: Used instead of the image sets that it names; all of ``calibration``, ``selection``, ``test``.
        notify: Told of each stage.

    Raises:
        EvoQuantError: Whatever is wrong with the model, its weights or its images.
    """
    notify = notify or _ignore
    torch.set_num_threads(experiment.evaluation.threads)
    notify("model", experiment.model.name)
    model = load_model(experiment) if model is None else model
    transform = transform_of(model, experiment)
    captured = capture(model, transform.config.input_size, name=experiment.model.name)
    sources = dict(images) if images is not None else load_splits(experiment, transform)
    check_disjoint(**sources)
    notify("preparation", f"{len(sources['calibration'])} images")
    captured, preparation = prepared(experiment, captured, sources["calibration"])
    notify("calibration", f"{len(sources['calibration'])} images")
    program_hash = hash_program(captured)
    statistics = calibrate(captured, sources["calibration"], experiment.evaluation.batch_size, program_hash)
    notify("moments", f"{len(sources['calibration'])} images")
    moments = moments_of(experiment, captured, sources["calibration"], program_hash)
    operands = OperandCache(
        captured,
        statistics,
        moments=moments,
        compensation=experiment.compensation,
        samples=samples_of(experiment, captured, sources["calibration"]),
        scores=scores_of(captured, sources["calibration"]),
    )
    evaluator = AccuracyEvaluator(
        SimulatedModel(captured, operands),
        _splits(captured, sources, experiment.evaluation.batch_size),
        threads=experiment.evaluation.threads,
    )
    identity = {
        "experiment": experiment_hash(experiment),
        "program": program_hash,
        **{f"{split}_images": sources[split].content_hash for split in SPLITS},
    }
    classes = efficientquant_classes(model, captured.graph)
    return Workbench(
        experiment, captured, statistics, evaluator, classes, identity, sources["calibration"], preparation
    )


def _ignore(_stage: str, _detail: str) -> None:
    """Nobody listens."""


def load_model(experiment: Experiment) -> nn.Module:
    """The model that an experiment names, with its weights.

    Raises:
        UnknownNameError: If no model has that name.
        ModelError: If the checkpoint does not fit.
        ConfigurationError: If the experiment has several architectures.
    """
    spec = experiment.of_architecture(None).model
    is_embedded = spec.name == models.EMBEDDED_MODEL
    torch.manual_seed(0)
    model = models.create(spec.name, num_classes=spec.num_classes, pretrained=spec.pretrained and not is_embedded)
    if spec.checkpoint is not None:
        models.load_weights(model, spec.checkpoint)
    elif spec.pretrained and is_embedded:
        models.load_weights(model, folder("embedded") / f"{models.EMBEDDED_MODEL}.safetensors")
    resize: Callable[..., None] | None = getattr(model, "set_input_size", None)
    if spec.image_size is not None and resize is not None:  # position embeddings are of one size
        resize(img_size=(spec.image_size, spec.image_size))
    return model.eval()


def captured_model(experiment: Experiment) -> CapturedModel:
    """The model that an experiment names, captured, without its images."""
    model = load_model(experiment)
    return capture(model, transform_of(model, experiment).config.input_size, name=experiment.model.name)


def transform_of(model: nn.Module, experiment: Experiment) -> Transform:
    """How images are prepared for the model."""
    return Transform.of(
        models.data_config(model),
        experiment.data.transform,
        image_size=experiment.model.image_size,
    )


def load_splits(experiment: Experiment, transform: Transform) -> dict[str, ImageBatchSource]:
    """The three image sets; calibration images need no labels.

    Raises:
        DataError: If a set is missing, empty or unreadable.
    """
    sources = {}
    for split in SPLITS:
        image_set: ImageSet = getattr(experiment.data, split)
        source = load_images(image_set, transform, unreadable=experiment.data.unreadable)
        if split != "calibration" and source.labels is None:
            raise ConfigurationError(f"data.{split}: these images have no labels; give labels: a CSV file.")
        sources[split] = source
    return sources


def calibrate(captured: CapturedModel, images: ImageBatchSource, batch_size: int, program_hash: str) -> Statistics:
    """Statistics of every operand, from the cache if these images went through this program before."""
    names = sorted({name for op in captured.graph.ops for name in op.inputs})
    key = statistics_key(program_hash=program_hash, images_hash=images.content_hash, node_names=names)
    return load_or_collect(
        cache_folder("statistics"), key, lambda: collect(captured.program, names, images.batches(batch_size))
    )


def prepared(
    experiment: Experiment, captured: CapturedModel, images: ImageBatchSource
) -> tuple[CapturedModel, PreparationReport]:
    """The model as it is quantized, and what was done to it; decisions of an earlier run are not made again.

    Raises:
        DataError: If there are too few images.
    """
    settings = experiment.preparation
    of_finalists = {"ridges", "rounding", "tuning"}
    rules = [
        settings.model_dump(mode="json"),
        experiment.compensation.model_dump(mode="json", exclude=of_finalists),
    ]
    what = [PREPARATION_VERSION, hash_program(captured), images.content_hash, *rules]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    batches = list(images.batches(experiment.evaluation.batch_size))
    known = cache_folder("preparation") / f"{key}.json"
    return improve(captured, batches, settings, experiment.compensation, known=known)


def samples_of(
    experiment: Experiment, captured: CapturedModel, images: ImageBatchSource
) -> LazySamples[OperandKey, OperandSample]:
    """Operands with gradients, taken when a range is set by them for the first time."""

    def take() -> Mapping[OperandKey, OperandSample]:
        count = min(len(images), experiment.preparation.gradient_images)
        starts = range(0, count, GRADIENT_BATCH)
        batches = (images.inputs(start, min(start + GRADIENT_BATCH, count)) for start in starts)
        return sample_operands(captured, batches, images=count)

    return LazySamples(take)


def scores_of(captured: CapturedModel, images: ImageBatchSource) -> LazySamples[str, ScoreSample]:
    """Queries and keys of some images, taken when a range is set by the order of their scores for the first time."""
    return LazySamples(lambda: sample_scores(captured, images.inputs(0, min(len(images), SCORE_IMAGES))))


def moments_of(
    experiment: Experiment, captured: CapturedModel, images: ImageBatchSource, program_hash: str
) -> Mapping[str, SplitMoments]:
    """Moments of the inputs of all weights, where the experiment asks for their compensation, from the cache if known.

    Raises:
        DataError: If there are too few images.
    """
    if not experiment.compensation.is_active:
        return {}
    share, size = experiment.compensation.gradient_share, experiment.evaluation.batch_size

    def collected() -> Mapping[str, SplitMoments]:
        importance = position_importance(captured, images.batches(size), share)
        return collect_moments(captured.program, captured.graph, images.batches(size), importance=importance)

    key = moments_key(program_hash=program_hash, images_hash=images.content_hash, gradient_share=share)
    return load_or_collect_moments(cache_folder("moments"), key, collected)


def hash_program(captured: CapturedModel) -> str:
    """SHA-256 of the structure and of all weights of a captured model."""
    digest = hashlib.sha256(graph_hash(captured.graph).encode())
    for name, value in sorted(captured.program.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _splits(captured: CapturedModel, sources: Mapping[str, ImageBatchSource], batch_size: int) -> ImageSplits:
    def load(split: str) -> LabelledImages:
        source = sources[split]
        assert source.labels is not None, "checked when the set was loaded"
        # Convolutions of torch are up to a third faster with channels last, and so is all that follows them.
        batches = (batch.contiguous(memory_format=torch.channels_last) for batch in source.batches(batch_size))
        return LabelledImages.judged_by(captured.program, tuple(batches), source.labels)

    return ImageSplits(load)
