"""The CPU kernels by compilers and for processors other than the usual ones: `cpu_harness.cpp` compares them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ops import library

HARNESS = Path(__file__).with_name("cpu_harness.cpp")
# GCC before 12 has no __builtin_shufflevector: here another name stands in its place.
WITHOUT_SHUFFLEVECTOR = "-D__builtin_shufflevector=not_in_gcc_11"
CROSS_LIBRARIES = "/usr/aarch64-linux-gnu"
KERNEL_FLAGS = [flag for flag in library.FLAGS if not flag.startswith("-DTORCH")]

COMPILERS = {
    "g++": (["g++"], []),
    "g++ without shufflevector": (["g++", WITHOUT_SHUFFLEVECTOR], []),
    "g++ 10": (["g++-10"], []),
    "g++ 11": (["g++-11"], []),
    "clang": (["clang++"], []),
    "clang, AVX2": (["clang++", *library.AVX2_FLAGS], []),
    "g++ 11, AVX2": (["g++-11", *library.AVX2_FLAGS], []),
    "aarch64": (["aarch64-linux-gnu-g++"], ["qemu-aarch64", "-L", CROSS_LIBRARIES]),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_the_kernels_agree_with_the_definition(name: str, tmp_path: Path) -> None:
    compiler, runner = COMPILERS[name]
    for program in (compiler[0], *runner[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} in PATH")
    if "AVX2" in name and not {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("this processor has no AVX2")
    program = tmp_path / "harness"
    sources = [str(library.SOURCES / "cpu_kernels.cpp"), str(HARNESS)]
    command = [*compiler, *KERNEL_FLAGS, "-DD3Q_VARIANT=baseline", f"-I{library.SOURCES}", *sources, "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:2000]
    run = subprocess.run([*runner, str(program)], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "agrees"), run.stdout + run.stderr
