"""Which precisions a network may have: genomes, the plans they stand for, legality, presets and seeds. No torch."""

from evoquant.config.choices import CalibrationChoice, GranularityChoice, SchemeBits
from evoquant.config.space import SpaceSpec
from evoquant.space.axes import N_AXES, Axis, GroupAxes
from evoquant.space.genome import FitnessWeights, QuantizationGenome
from evoquant.space.group_table import NO_EFFECT, GroupChoices, GroupTable, Legal
from evoquant.space.legality import canonical, refusal
from evoquant.space.plan import Plan, plan_hash
from evoquant.space.presets import (
    PRESET_NAMES,
    UNIFORM_PRESETS,
    efficientquant_plan,
    preset_plan,
    presets,
    uniform_plan,
)
from evoquant.space.seeds import sensitivity_seeds, structured_seeds
from evoquant.space.space import Genes, SearchSpace

__all__ = [
    "NO_EFFECT",
    "N_AXES",
    "PRESET_NAMES",
    "UNIFORM_PRESETS",
    "Axis",
    "CalibrationChoice",
    "FitnessWeights",
    "Genes",
    "GranularityChoice",
    "GroupAxes",
    "GroupChoices",
    "GroupTable",
    "Legal",
    "Plan",
    "QuantizationGenome",
    "SchemeBits",
    "SearchSpace",
    "SpaceSpec",
    "canonical",
    "efficientquant_plan",
    "plan_hash",
    "preset_plan",
    "presets",
    "refusal",
    "sensitivity_seeds",
    "structured_seeds",
    "uniform_plan",
]
