"""What a plan costs in accuracy: simulated quantization of the captured program, judged on images."""

from evoquant.evaluate.accuracy import ALL_IMAGES, AccuracyEvaluator, ImageSplits, LabelledImages
from evoquant.evaluate.metrics import IMAGE_SCORE, Accuracy, Scores, accuracy_of, compare_logits, wilson_interval
from evoquant.evaluate.prefix import Sweep
from evoquant.evaluate.probes import ProbeTable
from evoquant.evaluate.sensitivity import SENSITIVITY_TABLES, GroupSensitivity, analyze_sensitivity, metric_correlation
from evoquant.evaluate.simulate import Plan, SimulatedModel
from evoquant.evaluate.standing import Standing, standings
from evoquant.evaluate.workbench import SPLITS, Workbench, captured_model, load_model, prepare, transform_of

__all__ = [
    "ALL_IMAGES",
    "IMAGE_SCORE",
    "SENSITIVITY_TABLES",
    "SPLITS",
    "Accuracy",
    "AccuracyEvaluator",
    "GroupSensitivity",
    "ImageSplits",
    "LabelledImages",
    "Plan",
    "ProbeTable",
    "Scores",
    "SimulatedModel",
    "Standing",
    "Sweep",
    "Workbench",
    "accuracy_of",
    "analyze_sensitivity",
    "captured_model",
    "compare_logits",
    "load_model",
    "metric_correlation",
    "prepare",
    "standings",
    "transform_of",
    "wilson_interval",
]
