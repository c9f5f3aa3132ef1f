"""evoquant: evolutionary mixed-precision search for neural-network quantization.

The public names are imported on first use, so that ``import evoquant`` and the torch-free parts stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evoquant.api import (
        EfficientQuantDeployment,
        EfficientQuantizer,
        QuantizationEvolutionEngine,
        compare_quantization_methods,
        run_evolution,
        run_evolution_sync,
    )
    from evoquant.config import Experiment, QuantizationEvolutionConfig, load_experiment
    from evoquant.space import QuantizationGenome
    from evoquant.types import CalibrationMethod, LayerQuantConfig, QuantizationGranularity, QuantizationScheme
    from evoquant.types.target import HardwareTarget

__all__ = [
    "CalibrationMethod",
    "EfficientQuantDeployment",
    "EfficientQuantizer",
    "Experiment",
    "HardwareTarget",
    "LayerQuantConfig",
    "QuantizationEvolutionConfig",
    "QuantizationEvolutionEngine",
    "QuantizationGenome",
    "QuantizationGranularity",
    "QuantizationScheme",
    "compare_quantization_methods",
    "load_experiment",
    "run_evolution",
    "run_evolution_sync",
]

_HOMES = {
    "evoquant.api": (
        "EfficientQuantDeployment",
        "EfficientQuantizer",
        "QuantizationEvolutionEngine",
        "compare_quantization_methods",
        "run_evolution",
        "run_evolution_sync",
    ),
    "evoquant.config": ("Experiment", "QuantizationEvolutionConfig", "load_experiment"),
    "evoquant.space": ("QuantizationGenome",),
    "evoquant.types": ("CalibrationMethod", "LayerQuantConfig", "QuantizationGranularity", "QuantizationScheme"),
    "evoquant.types.target": ("HardwareTarget",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME_OF:
        raise AttributeError(f"module 'evoquant' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
