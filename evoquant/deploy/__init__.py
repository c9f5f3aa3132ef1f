"""The packed model that runs a whole network on the native kernels, its folder and its verification."""

from evoquant.deploy.exports import export_run, verify_run
from evoquant.deploy.folder import load_packed, save_packed
from evoquant.deploy.measurement import Comparison, Latency, compare_with_table, measure_packed, measure_together
from evoquant.deploy.packed_model import PackedModel, pack
from evoquant.deploy.recipe import Recipe
from evoquant.deploy.verification import compare_packed, verify_packed

__all__ = [
    "Comparison",
    "Latency",
    "PackedModel",
    "Recipe",
    "compare_packed",
    "compare_with_table",
    "export_run",
    "load_packed",
    "measure_packed",
    "measure_together",
    "pack",
    "save_packed",
    "verify_packed",
    "verify_run",
]
