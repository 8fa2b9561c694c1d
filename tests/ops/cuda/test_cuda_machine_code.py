"""What nvcc makes of the CUDA kernels for each architecture: loads, reductions and registers; nothing may spill."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ops import compile, cuda_build, library

ELEMENTS = {"f": 4, "6__half": 2, "13__nv_bfloat16": 2}  # mangled name of a dtype -> its bytes
# Largest number of registers that leaves as many warps as the table in docs/benchmarks.md says.
REGISTERS = {"75": 80, "80": 64, "90": 64}
KERNELS = 2 * 6 * len(cuda_build.DTYPES)  # directions, widths


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or the one that comes with triton."""
    with_triton = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin"
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(with_triton))


pytestmark = [
    pytest.mark.skipif(
        not shutil.which("nvcc") or not any(map(shutil.which, compile.COMPILERS)),
        reason="no nvcc or no C++ compiler in PATH",
    ),
    pytest.mark.skipif(not cuobjdump(), reason="no cuobjdump"),
]


def reductions_of(name: str, architecture: str) -> int:
    """Instructions of a backward kernel that add to the gradient of value: of 4 cells, for each sample a lane stages.

    From 9.0 on each adds four floats.
    """
    dtype, width = re.search(r"kernelI(\w+?)Li(\d+)E", name).groups()  # type: ignore[union-attr]
    channels = 16 // ELEMENTS[dtype]
    lanes = min(int(width) // channels, 32)
    taps = 2 if lanes < 8 else 1
    own = int(width) // lanes
    return taps * 4 * (own // 4 if architecture == "90" else own)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with the kernels: the one that is there for these sources and flags, or a new one."""
    plan = cuda_build.Plan("nvcc", cuda_build.make_plan().toolkit, ("75", "80", "90+PTX"))
    if there := library.fitting_libraries(library.library_name(plan.architectures, plan.toolkit)):
        return there[0]
    include = Path(torch.__file__).parent / "include"
    return compile.compile_library(compile.find_compiler(), include, tmp_path_factory.mktemp("built"), plan).library


def disassembled(path: Path, option: str) -> dict[str, dict[str, str]]:
    """Architecture -> mangled name of a kernel -> what cuobjdump says of it."""
    command = [str(cuobjdump()), option, str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, str]] = {}
    for file in re.split(r"\nFatbin elf code:", listing)[1:]:
        kernels = found.setdefault(re.search(r"arch = sm_(\d+)", file)[1], {})  # type: ignore[index]
        for function in re.split(r"\n\s*Function\b[ :]*", file)[1:]:
            name, _, text = function.partition("\n")
            kernels[name.rstrip(":")] = text
    return found


def test_nothing_spills(built: Path) -> None:
    found = disassembled(built, "-res-usage")
    assert found.keys() == REGISTERS.keys()
    for architecture, kernels in found.items():
        used = [re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text) for text in kernels.values()]
        assert len(used) == KERNELS
        assert {each.groups()[1:] for each in used if each} == {("0", "0")}
        assert max(int(each[1]) for each in used if each) <= REGISTERS[architecture]


def test_loads_and_reductions(built: Path) -> None:
    """Whole vectors are loaded; additions go to global memory, return nothing, and none is made in shared memory."""
    found = disassembled(built, "-sass")
    assert found.keys() == REGISTERS.keys()
    for architecture, kernels in found.items():
        assert len(kernels) == KERNELS
        for name, code in kernels.items():
            assert len(re.findall(r"LDG\.E\.128", code)) >= 4, name
            assert not re.search(r"\b(LDL|STL|ATOMS|ATOMG|ATOM)\b", code), name
            reductions = re.findall(r"\bREDG?\.E\.ADD\S*", code)
            assert len(reductions) == (reductions_of(name, architecture) if "backward" in name else 0), name
            assert all(("F32x4" in each) == (architecture == "90") for each in reductions), name
