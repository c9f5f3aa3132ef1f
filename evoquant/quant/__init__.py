"""Quantizers: parameters, codes, fast simulation, scales of weights, packing."""

from evoquant.quant.codec import FakeQuant, dequantize, fake_quantize, quantize
from evoquant.quant.packing import PACKED_BITS, pack, unpack
from evoquant.quant.params import SMALLEST_SCALE, QuantParams, code_range
from evoquant.quant.weights import step_scale, weight_params
from evoquant.types.storage import packed_bytes, weight_bytes
from evoquant.types.support import check_supported, support_problem

__all__ = [
    "PACKED_BITS",
    "SMALLEST_SCALE",
    "FakeQuant",
    "QuantParams",
    "check_supported",
    "code_range",
    "dequantize",
    "fake_quantize",
    "pack",
    "packed_bytes",
    "quantize",
    "step_scale",
    "support_problem",
    "unpack",
    "weight_bytes",
    "weight_params",
]
