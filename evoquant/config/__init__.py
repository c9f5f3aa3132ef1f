"""Configuration: strict YAML and frozen pydantic models. No torch."""

from evoquant.config.evolution import EvolutionParts, QuantizationEvolutionConfig
from evoquant.config.experiment import (
    EMBEDDED,
    ConstraintsSpec,
    DataSpec,
    EvaluationSpec,
    Experiment,
    ImageSet,
    OutputSpec,
    SearchSpec,
    TargetSpec,
    TransformSpec,
)
from evoquant.config.experiment_file import (
    Effort,
    experiment_differences,
    experiment_hash,
    experiment_to_dict,
    experiment_to_yaml,
    load_experiment,
    with_effort,
)
from evoquant.config.model import ArchitectureSpec, ModelChanges, ModelSpec
from evoquant.config.validation import validate
from evoquant.config.yaml_loader import Located, dump_yaml, load_yaml, parse_yaml

__all__ = [
    "EMBEDDED",
    "ArchitectureSpec",
    "ConstraintsSpec",
    "DataSpec",
    "Effort",
    "EvaluationSpec",
    "EvolutionParts",
    "Experiment",
    "ImageSet",
    "Located",
    "ModelChanges",
    "ModelSpec",
    "OutputSpec",
    "QuantizationEvolutionConfig",
    "SearchSpec",
    "TargetSpec",
    "TransformSpec",
    "dump_yaml",
    "experiment_differences",
    "experiment_hash",
    "experiment_to_dict",
    "experiment_to_yaml",
    "load_experiment",
    "load_yaml",
    "parse_yaml",
    "validate",
    "with_effort",
]
