"""How the CUDA kernels are compiled, where there is an nvcc. It needs no GPU, no driver and no CUDA part of torch."""

import os
import re
import shutil
from pathlib import Path

DTYPES = ("kFloat", "kHalf", "kBFloat16")
# The code for 8.0 runs on all 8.x; PTX of the newest serves devices that are newer still.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
OLDEST_ARCHITECTURE = 80
FLAGS = ("-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
# With NVIDIA's runtime inside and its symbols hidden, the library loads where there is no CUDA, and beside torch's own.
LINK_FLAGS = ("-cudart=static", "-shared", "-Xlinker=--exclude-libs,ALL")


class NoCudaError(Exception):
    """Why the library is built without the CUDA kernels."""


def is_turned_off() -> bool:
    return os.environ.get("D3Q_OPS_CUDA") == "0"


def find_nvcc() -> str:
    """The compiler of CUDA_HOME, or the first in PATH. Raises NoCudaError."""
    if is_turned_off():
        raise NoCudaError("D3Q_OPS_CUDA=0")
    home = os.environ.get("CUDA_HOME")
    path = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    path = path or shutil.which("nvcc")
    if path is None:
        raise NoCudaError("no nvcc in PATH or CUDA_HOME")
    return path


def architectures() -> tuple[str, ...]:
    """Those of TORCH_CUDA_ARCH_LIST, sorted: ("80", "90+PTX"). Raises NoCudaError."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    found = set()
    for name in re.split(r"[;,\s]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise NoCudaError(f"TORCH_CUDA_ARCH_LIST: {name!r} is no number like 8.0 or 9.0+PTX")
        major, minor, variant, ptx = match.groups(default="")
        if int(major + minor) < OLDEST_ARCHITECTURE:
            raise NoCudaError(f"TORCH_CUDA_ARCH_LIST: {name} is older than 8.0, for which there are no kernels")
        found.add(major + minor + variant + ptx)
    return tuple(sorted(found, key=lambda name: (int(re.sub(r"\D", "", name)), name)))


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
