"""Compile commands of the CUDA kernels. They need an nvcc, but no GPU, no driver, and no torch built for CUDA."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ops.cuda_architectures import NoArchitectureError, architectures

DTYPES = ("kFloat", "kHalf", "kBFloat16")
FLAGS = ("-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
# With the CUDA runtime linked statically and its symbols hidden, the library loads without CUDA, and beside torch's
# own.
LINK_FLAGS = ("-cudart=static", "-shared", "-Xlinker=--exclude-libs,ALL")
USUAL_FOLDERS = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda")


class NoCudaError(Exception):
    """Why the library is built without the CUDA kernels."""


@dataclass(frozen=True)
class Plan:
    """Compiler and targets of the kernels.

    toolkit         version of the CUDA toolkit: "13.0"
    architectures   sorted, as in file names: ("80", "90+PTX")
    remarks         on dropped entries of TORCH_CUDA_ARCH_LIST
    """

    nvcc: str
    toolkit: str
    architectures: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def is_turned_off() -> bool:
    return os.environ.get("D3Q_OPS_CUDA") == "0"


def make_plan() -> Plan:
    """Raises NoCudaError."""
    nvcc = find_nvcc()
    known = frozenset(map(int, re.findall(r"compute_(\d+)", _output_of(nvcc, "--list-gpu-arch"))))
    version = re.search(r"release (\d+\.\d+)", _output_of(nvcc, "--version"))
    try:
        names, remarks = architectures(known)
    except NoArchitectureError as error:
        raise NoCudaError(str(error)) from None
    return Plan(nvcc, version[1] if version else "unknown", names, tuple(remarks))


def find_nvcc() -> str:
    """The nvcc of CUDA_HOME, of CUDA_PATH, the first in PATH, or that of the usual folders.

    Raises NoCudaError.
    """
    if is_turned_off():
        raise NoCudaError("D3Q_OPS_CUDA=0")
    homes = [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    for place in (*(str(home / "bin") for home in homes), None, *(str(home / "bin") for home in _usual_folders())):
        if path := shutil.which("nvcc", path=place):  # None: PATH
            return path
    raise NoCudaError(f"no nvcc in CUDA_HOME, CUDA_PATH, PATH or {', '.join(USUAL_FOLDERS)}")


def _usual_folders() -> Iterator[Path]:
    """CUDA folders, the newest version first."""
    for pattern in map(Path, USUAL_FOLDERS):
        found = pattern.parent.glob(pattern.name)
        yield from sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], reverse=True)


def _output_of(nvcc: str, option: str) -> str:
    """Output of nvcc with one option; empty if it cannot run."""
    try:
        return subprocess.run([nvcc, option], capture_output=True, text=True, errors="replace").stdout
    except OSError:
        return ""


def compile_commands(nvcc: list[str], names: tuple[str, ...], sources: Path, work: Path) -> dict[str, list[str]]:
    """Object file in `work` -> the command that makes it; one per dtype, for all architectures."""
    targets = []
    for name in names:
        number = name.removesuffix("+PTX")
        code = f"[sm_{number},compute_{number}]" if name.endswith("+PTX") else f"sm_{number}"
        targets.append(f"-gencode=arch=compute_{number},code={code}")
    common = [*nvcc, *FLAGS, *targets, "-c", str(sources / "cuda_kernels.cu")]
    defines = {f"cuda_{dtype}.o": f"-DD3Q_DTYPE={dtype}" for dtype in DTYPES}
    return {name: [*common, define, "-o", str(work / name)] for name, define in defines.items()}
