"""The Python face of the native kernels: what the machine can run, packed weights, and timed cases."""

from evoquant.kernels.alike import executed_as
from evoquant.kernels.attention import Attention
from evoquant.kernels.case import KernelCase, KernelOp, case_of, conversion_case, float_case
from evoquant.kernels.codes import Activation, ActivationCodes
from evoquant.kernels.machine import fingerprint
from evoquant.kernels.matmul import Matmul
from evoquant.kernels.native import KernelInfo, info, set_threads
from evoquant.kernels.packed import (
    PackedConv,
    PackedDepthwise,
    PackedGemm,
    Weights,
    pack_conv,
    pack_depthwise,
    pack_gemm,
)
from evoquant.kernels.timing import Timing, measure

__all__ = [
    "Activation",
    "ActivationCodes",
    "Attention",
    "KernelCase",
    "KernelInfo",
    "KernelOp",
    "Matmul",
    "PackedConv",
    "PackedDepthwise",
    "PackedGemm",
    "Timing",
    "Weights",
    "case_of",
    "conversion_case",
    "executed_as",
    "fingerprint",
    "float_case",
    "info",
    "measure",
    "pack_conv",
    "pack_depthwise",
    "pack_gemm",
    "set_threads",
]
