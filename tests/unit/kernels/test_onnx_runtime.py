"""ONNX Runtime held to an instruction set, in processes of their own: it chooses once and for all."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from evoquant.kernels import info
from evoquant.kernels.native import native

SCRIPT = """
from evoquant.kernels import onnx_runtime
print(onnx_runtime.load("{isa}"))
import numpy as np, onnxruntime as ort
print(onnx_runtime.load("reference"))
"""

pytestmark = [
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed"),
    pytest.mark.skipif("avx2" not in info().supported, reason="the machine has no AVX2"),
]


def loaded(isa):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(isa=isa)], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout.split()


def test_the_best_instruction_set_needs_no_cap():
    assert loaded(info().supported[-1]) == ["None", "None"]


def test_it_is_held_to_fewer_where_the_machine_can_and_keeps_its_choice():
    if info().supported[-1] == "avx2":
        pytest.skip("the machine has nothing beyond AVX2")
    first, again = loaded("avx2")
    assert first == again
    assert first in ("avx2", "None")


def test_what_is_no_instruction_set_of_x86_is_refused():
    with pytest.raises(RuntimeError, match="cap_cpuid: 0 is not an x86 instruction set"):
        native().cap_cpuid(0)
