"""Kernels that stand for each other."""

import numpy as np
import pytest

from evoquant.kernels import KernelCase, executed_as, info
from evoquant.kernels.workload import PackedRun, workload

GEMM = (64, 96, 48)


def test_widths_are_alike_where_sums_are_exact():
    for precision in ("w8a8", "w4a8", "w3a5", "w4a8-normal", "w4a6-log2", "w2a8-ternary"):
        assert executed_as(KernelCase("gemm+silu", GEMM, precision), "avx512_vnni").precision == "w8a8"
    ends = KernelCase("conv", (8, 8, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1), "w4a5-lloyd-g16-u8in-lloydout")
    assert executed_as(ends, "avx_vnni").precision == "w8a4-lloyd-g16-u8in-lloydout"
    assert executed_as(KernelCase("softmax+matmul", (3, 9, 8, 9, 0), "w5a5-loga"), "neon").precision == "w8a5-loga"


@pytest.mark.parametrize(
    ("case", "isa"),
    [
        (KernelCase("gemm", GEMM, "w4a8"), "avx2"),
        (KernelCase("gemm", GEMM, "fp32"), "avx512_vnni"),
        (KernelCase("gemm", GEMM, "w16a16"), "avx512_vnni"),
        (KernelCase("gemm", (1, 4096, 2048), "w4a8"), "avx512_vnni"),
        (KernelCase("softmax", (8, 64)), "avx512_vnni"),
    ],
)
def test_others_stand_for_themselves(case, isa):
    assert executed_as(case, isa) == case


@pytest.mark.parametrize("isa", info().supported)
@pytest.mark.parametrize("precision", ["w4a8", "w7a5", "w4a8-normal", "w4a8-log2", "w8a8"])
def test_those_that_stand_for_each_other_have_one_inner_loop(isa, precision):
    case = KernelCase("gemm", GEMM, precision)
    runs = [workload(each, np.random.default_rng(0), isa=isa) for each in (case, executed_as(case, isa))]
    assert all(isinstance(run, PackedRun) for run in runs)
    assert runs[0].packed.instructions == runs[1].packed.instructions
