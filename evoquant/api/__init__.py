"""What Python users call: a run as a coroutine, and the classes under their older names."""

from evoquant.api.compare import compare_quantization_methods
from evoquant.api.efficientquant import EfficientQuantDeployment, EfficientQuantizer
from evoquant.api.engine import QuantizationEvolutionEngine
from evoquant.api.evolution import run_evolution, run_evolution_sync

__all__ = [
    "EfficientQuantDeployment",
    "EfficientQuantizer",
    "QuantizationEvolutionEngine",
    "compare_quantization_methods",
    "run_evolution",
    "run_evolution_sync",
]
