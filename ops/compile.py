"""Calls the compilers: sources to a shared library. CPU and CUDA kernels fail without each other."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ops import cuda_build
from ops.cuda_build import Plan
from ops.library import AVX2_FLAGS, FLAGS, SOURCES, has_avx2_variant

COMPILERS = ("c++", "g++", "clang++")


class NotBuiltError(Exception):
    """Why nothing was compiled, where that is no mistake of anybody's."""


class BuildError(Exception):
    """A compiler is there and does not compile the library."""


@dataclass(frozen=True)
class Made:
    """What came of it; a part that does not compile is not in the library, and its first error is here."""

    library: Path
    without_cuda: str = ""
    without_cpu: str = ""
    remarks: tuple[str, ...] = ()


def find_compiler() -> list[str]:
    """The command of CXX, or the first C++ compiler in PATH. Raises NotBuiltError or BuildError."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        if shutil.which(wanted[0]) is None:
            raise BuildError(f"CXX={shlex.join(wanted)}: no such program; name a C++ compiler or unset CXX")
        return wanted
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise NotBuiltError(f"no C++ compiler ({', '.join(COMPILERS)}) in PATH; install one, e.g. apt-get install g++")


def compile_library(compiler: list[str], include: Path, work: Path, plan: Plan | None) -> Made:
    """Compiles all units at once and links what compiled.

    include   torch's headers
    work      an empty folder for what is made
    plan      of the CUDA kernels; None: without them
    Raises BuildError where nothing is left to link.
    """
    unit = _Units(compiler, include, work)
    avx2 = ["-DD3Q_HAS_AVX2"] if has_avx2_variant() else []
    cpu = {
        "baseline.o": unit("baseline.o", "cpu_kernels.cpp", "-DD3Q_VARIANT=baseline"),
        "bindings.o": unit("bindings.o", "bindings.cpp", *avx2),
    }
    if avx2:
        cpu["avx2.o"] = unit("avx2.o", "cpu_kernels.cpp", "-DD3Q_VARIANT=avx2", *avx2, *AVX2_FLAGS)
    cuda: dict[str, list[str]] = {}
    # What is more than the name of a compiler, nvcc would not understand; it then takes the one that it finds.
    nvcc = [plan.nvcc, *(["-ccbin", *compiler] if len(compiler) == 1 else [])] if plan else []
    if plan:
        cuda = cuda_build.compile_commands(nvcc, plan.architectures, SOURCES, work)
        cuda["cuda_bindings.o"] = unit("cuda_bindings.o", "cuda_bindings.cpp")
    errors = _run_all(cpu | cuda)
    remarks = []
    if set(errors) & set(cpu) == {"avx2.o"}:  # an old assembler
        remarks.append(f"without AVX2, which does not compile: {_first_error(errors.pop('avx2.o'))}")
        del cpu["avx2.o"]
        cpu["bindings.o"] = unit("bindings.o", "bindings.cpp")
        errors |= _run_all({"bindings.o": cpu["bindings.o"]})
    cpu_error, cuda_error = (next((errors[name] for name in part if name in errors), None) for part in (cpu, cuda))
    library = work / "library.so"
    torch_libraries = [f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(library)]
    if cuda and not cuda_error:
        objects = [str(work / name) for name in ({} if cpu_error else cpu) | cuda]
        cuda_error = _error_of([*nvcc, *cuda_build.LINK_FLAGS, *objects, *torch_libraries])
    if not cuda or cuda_error:
        cpu_error = cpu_error or _error_of(
            [*compiler, "-shared", *(str(work / name) for name in cpu), *torch_libraries]
        )
        if cpu_error:
            raise BuildError(cpu_error + (f"\n{cuda_error}" if cuda_error else ""))
    return Made(library, _does_not_compile(cuda_error), _does_not_compile(cpu_error), tuple(remarks))


class _Units:
    """Commands of the C++ compiler: name of the object file, source, flags of its own."""

    def __init__(self, compiler: list[str], include: Path, work: Path) -> None:
        self._common = [*compiler, *FLAGS, f"-I{include}", "-c"]
        self._work = work

    def __call__(self, name: str, source: str, *flags: str) -> list[str]:
        return [*self._common, *flags, str(SOURCES / source), "-o", str(self._work / name)]


def _does_not_compile(error: str | None) -> str:
    return f"they do not compile: {_first_error(error)}" if error else ""


def _first_error(error: str) -> str:
    """Of what a compiler says, the first line about an error."""
    lines = error.splitlines()[1:]
    return next((line for line in lines if re.search("error|fatal", line, re.IGNORECASE)), lines[-1]).strip()


def _run_all(commands: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Several at once; the errors of those that fail."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = dict(zip(commands, pool.map(_error_of, commands.values()), strict=True))
    return {name: error for name, error in errors.items() if error is not None}


def _error_of(command: Sequence[str]) -> str | None:
    """Runs it; what it says where it fails."""
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if finished.returncode == 0:
        return None
    return f"{shlex.join(command)}\nexit status {finished.returncode}\n{finished.stderr.strip()}"
