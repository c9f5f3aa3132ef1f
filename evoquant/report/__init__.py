"""Plots and the report of a finished search."""

from evoquant.report.bits_by_layer import plot_bits_by_layer, plot_front_bits
from evoquant.report.hypervolume import plot_hypervolume
from evoquant.report.objective_pairs import plot_accuracy, plot_objective_pairs
from evoquant.report.report_page import write_plots, write_report
from evoquant.report.sensitivity import plot_sensitivity

__all__ = [
    "plot_accuracy",
    "plot_bits_by_layer",
    "plot_front_bits",
    "plot_hypervolume",
    "plot_objective_pairs",
    "plot_sensitivity",
    "write_plots",
    "write_report",
]
