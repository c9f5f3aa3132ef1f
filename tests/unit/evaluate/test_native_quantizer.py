"""Quantizers in the native kernels: bit by bit those of torch."""

from __future__ import annotations

import pytest
import torch

from evoquant import kernels
from evoquant.evaluate.native_quantizer import NativeFakeQuant, fake_quantizer
from evoquant.quant import FakeQuant, QuantParams, fake_quantize
from evoquant.types import QuantizationScheme

ZERO = torch.tensor(0, dtype=torch.int32)
PARAMS = {
    "asymmetric": QuantParams(
        QuantizationScheme.UNIFORM, 6, torch.tensor(0.0371), torch.tensor(23, dtype=torch.int32), 0, 63
    ),
    "symmetric": QuantParams(QuantizationScheme.UNIFORM, 8, torch.tensor(0.0117), ZERO, -127, 127),
    "16 bits": QuantParams(
        QuantizationScheme.UNIFORM, 16, torch.tensor(1e-4), torch.tensor(30_000, dtype=torch.int32), 0, 65535
    ),
    "log2": QuantParams(QuantizationScheme.LOG2, 4, torch.tensor(0.83), ZERO, 0, 15),
    "lloyd": QuantParams(
        QuantizationScheme.LLOYD, 3, torch.tensor(0.013), ZERO, 0, 7, levels=(-90, -40, -9, 0, 5, 17, 60, 151)
    ),
}

pytestmark = pytest.mark.skipif(not kernels.info().available, reason="the native kernels are not built")


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "strided", "in place"])
def test_values_are_those_of_torch(name: str, layout: str) -> None:
    """Whatever the strides, and the result has those of the input."""
    x = torch.randn(3, 8, 5, 7, generator=torch.Generator().manual_seed(0))
    x.view(-1)[:3] = torch.tensor([torch.nan, 1e9, -1e9])
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(1, 3)
    elif layout == "strided":
        x = x[:, ::2]
    expected = fake_quantize(x, PARAMS[name])
    quantizer = fake_quantizer(PARAMS[name])
    assert isinstance(quantizer, NativeFakeQuant)
    found = quantizer(x, out=x if layout == "in place" else None)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == x.stride() or layout == "strided"


def test_what_kernels_do_not_have_stays_with_torch() -> None:
    """A scale for each head, and two levels in an octave."""
    heads = QuantParams(
        QuantizationScheme.UNIFORM, 4, torch.rand(2) + 0.1, torch.zeros(2, dtype=torch.int32), -7, 7, axis=1
    )
    finer = QuantParams(QuantizationScheme.LOG2, 4, torch.tensor(1.0), ZERO, 0, 15, levels_per_octave=2)
    assert all(type(fake_quantizer(params)) is FakeQuant for params in (heads, finer))
