"""Where a plan changes the precision of a tensor between two neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evoquant.hardware.tensors import TensorTable
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig, QuantizationScheme


class Conversion(NamedTuple):
    """One pass over a tensor that quantizes it for some of its readers.

    Attributes:
        tensor: Name of the node that makes the tensor.
        elements: Number of values.
        bits: Width that it is quantized to.
    """

    tensor: str
    elements: int
    bits: int


class InputCode(NamedTuple):
    """What two operations must agree on to read the same quantized tensor."""

    bits: int
    scheme: QuantizationScheme
    is_symmetric: bool


def input_code(config: LayerQuantConfig) -> InputCode | None:
    """The code of the input activations of an operation; None if they are in floating point."""
    if config.activation_bits == FLOAT_BITS:
        return None
    return InputCode(config.activation_bits, config.activation_scheme, config.use_symmetric)


def conversions(tensors: TensorTable, configs: Sequence[LayerQuantConfig]) -> Iterator[Conversion]:
    """The passes that a plan needs.

    A quantized operation stores its result in the code that the first quantized reader wants, as part of its kernel,
    if nothing reads that result in floating point. Every other code that some reader wants takes one pass over the
    tensor, shared by all readers that want the same.

    Args:
        tensors: The stored tensors of the graph.
        configs: Precision of each operation, in the order of the graph.
    """
    codes = [input_code(config) for config in configs]
    for tensor in tensors.tensors:
        wanted = dict.fromkeys(code for reader in tensor.op_readers if (code := codes[reader]) is not None)
        if not wanted:
            continue
        reads_float = tensor.float_readers > 0 or any(codes[reader] is None for reader in tensor.op_readers)
        is_stored_in_code = tensor.producer is not None and not reads_float and codes[tensor.producer] is not None
        for code in list(wanted)[1 if is_stored_in_code else 0 :]:
            yield Conversion(tensor.node.name, tensor.node.elements, code.bits)
