"""What a plan costs on a device: what it executes, how long, with which energy, in how much memory. No torch."""

from evoquant.hardware.bundle import BundleItem, bundle_items, write_bundle
from evoquant.hardware.calibration import Calibration, calibrate_roofline
from evoquant.hardware.cost_table import CostTable
from evoquant.hardware.costs import Breakdown, CostModel, Costs
from evoquant.hardware.device import Device, NativeType
from evoquant.hardware.device_file import device_names, load_device
from evoquant.hardware.energy import EnergyCost, energy, quadratic_law
from evoquant.hardware.latency import LatencyEstimate, LatencyModel
from evoquant.hardware.legality import Choices, Legal, Legaliser, choices, legalise, legaliser
from evoquant.hardware.measured import MeasuredLatency, reachable_cases
from evoquant.hardware.memory import BYTES_PER_MB, MemoryCost, memory
from evoquant.hardware.models import machine_table
from evoquant.hardware.provenance import Kind, Quantity
from evoquant.hardware.roofline import Roofline
from evoquant.hardware.table import LatencyTable, read_table
from evoquant.hardware.tensors import TensorTable

__all__ = [
    "BYTES_PER_MB",
    "Breakdown",
    "BundleItem",
    "Calibration",
    "Choices",
    "CostModel",
    "CostTable",
    "Costs",
    "Device",
    "EnergyCost",
    "Kind",
    "LatencyEstimate",
    "LatencyModel",
    "LatencyTable",
    "Legal",
    "Legaliser",
    "MeasuredLatency",
    "MemoryCost",
    "NativeType",
    "Quantity",
    "Roofline",
    "TensorTable",
    "bundle_items",
    "calibrate_roofline",
    "choices",
    "device_names",
    "energy",
    "legalise",
    "legaliser",
    "load_device",
    "machine_table",
    "memory",
    "quadratic_law",
    "reachable_cases",
    "read_table",
    "write_bundle",
]
