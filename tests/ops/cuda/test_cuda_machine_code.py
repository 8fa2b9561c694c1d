"""What nvcc makes of the CUDA kernels for each architecture: loads, reductions and registers; nothing may spill."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ops import cuda_build, library

ELEMENTS = {"f": 4, "6__half": 2, "13__nv_bfloat16": 2}  # mangled name of a dtype -> its bytes
# Largest number of registers that leaves as many warps as the table in docs/benchmarks.md says.
REGISTERS = {"75": 80, "80": 64, "90": 64}
pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc in PATH")


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or the one that comes with triton."""
    with_triton = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin"
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(with_triton))


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


@pytest.fixture(scope="module", params=REGISTERS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """An architecture, what ptxas says, and the folder of object files."""
    folder = tmp_path_factory.mktemp("machine_code")
    said = ""
    commands = cuda_build.compile_commands(["nvcc"], (request.param,), library.SOURCES, folder)
    for command in commands.values():
        said += subprocess.run([*command, "-Xptxas=-v"], check=True, capture_output=True, text=True).stderr
    return request.param, said, folder


def test_nothing_spills(compiled: tuple[str, str, Path]) -> None:
    architecture, said, _ = compiled
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert frames == [("0", "0", "0")] * 36
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 36
    assert max(registers) <= REGISTERS[architecture]


@pytest.mark.skipif(not cuobjdump(), reason="no cuobjdump")
def test_loads_and_reductions(compiled: tuple[str, str, Path]) -> None:
    """Whole vectors are loaded; additions go to global memory, return nothing, and none is made in shared memory."""
    architecture, _, folder = compiled
    seen = 0
    for path in sorted(folder.glob("*.o")):
        command = [str(cuobjdump()), "-sass", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for function in re.split(r"\n\s*Function : ", listing)[1:]:
            name, _, code = function.partition("\n")
            seen += 1
            assert len(re.findall(r"LDG\.E\.128", code)) >= 4, name
            assert not re.search(r"\b(LDL|STL|ATOMS|ATOMG|ATOM)\b", code), name
            reductions = re.findall(r"\bREDG?\.E\.ADD\S*", code)
            assert len(reductions) == (reductions_of(name, architecture) if "backward" in name else 0), name
            assert all(("F32x4" in each) == (architecture == "90") for each in reductions), name
    assert seen == 36
