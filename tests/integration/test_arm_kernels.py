"""The native test of the kernels where the machine of the suite is not the one: ARM under emulation, sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KERNELS = Path(__file__).parents[2] / "kernels"
SYSROOT = Path("/usr/aarch64-linux-gnu")


def _require(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def _run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.splitlines()


def _native_test(folder, option):
    _run("cmake", "-S", KERNELS, "-B", folder, "-DEVOQUANT_PYTHON=OFF", "-DEVOQUANT_TESTS=ON", option)
    _run("cmake", "--build", folder, "--parallel", 2)
    return folder / "evoquant_native_test"


@pytest.fixture(scope="module")
def arm_native_test(tmp_path_factory):
    _require("cmake", "make", "aarch64-linux-gnu-g++", "qemu-aarch64")
    toolchain = KERNELS / "cmake" / "aarch64.cmake"
    return _native_test(tmp_path_factory.mktemp("arm"), f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")


@pytest.mark.parametrize(
    ("processor", "dot_products"),
    [("max", "neon_dot: exact"), ("cortex-a72", "neon_dot: not supported by this machine")],
)
def test_arm_kernels_are_exact_on_what_the_processor_has(arm_native_test, processor, dot_products):
    lines = _run("qemu-aarch64", "-L", SYSROOT, "-cpu", processor, arm_native_test)
    assert lines == ["reference: exact", "neon: exact", dot_products]


def test_kernels_of_this_machine_are_clean_under_sanitizers(tmp_path):
    _require("cmake", "make", "c++")
    lines = _run(_native_test(tmp_path, "-DEVOQUANT_SANITIZE=ON"))
    assert lines[0] == "reference: exact"
    assert all(line.endswith((": exact", ": not supported by this machine")) for line in lines)
