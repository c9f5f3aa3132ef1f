"""Streaming statistics of activations, and the ranges that are set from them."""

from evoquant.calibrate.cache import load_or_collect, load_statistics, save_statistics, statistics_key
from evoquant.calibrate.collect import collect
from evoquant.calibrate.ranges import GELU_MINIMUM, SILU_MINIMUM, activation_params, operand_params
from evoquant.calibrate.statistics import Statistics, TensorObserver, TensorStatistics

__all__ = [
    "GELU_MINIMUM",
    "SILU_MINIMUM",
    "Statistics",
    "TensorObserver",
    "TensorStatistics",
    "activation_params",
    "collect",
    "load_or_collect",
    "load_statistics",
    "operand_params",
    "save_statistics",
    "statistics_key",
]
