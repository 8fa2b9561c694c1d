"""Compile sources to a shared library. CPU and CUDA kernels are independent: one may fail without the other."""

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
    """Nothing was compiled, for an acceptable reason such as a missing compiler."""


class BuildError(Exception):
    """The compiler failed."""


@dataclass(frozen=True)
class Made:
    """The compiled library. A part that does not compile is not in it; its first error is here."""

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
    """Compile all units in parallel and link those that compiled.

    include   torch's headers
    work      an empty folder for objects and library
    plan      of the CUDA kernels; None: without them
    Raises BuildError if nothing can be linked.
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
    # nvcc accepts only the name of a compiler, without options; otherwise it uses the one that it finds.
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
    """Commands of the C++ compiler, from the name of the object file, the source, and extra flags."""

    def __init__(self, compiler: list[str], include: Path, work: Path) -> None:
        self._common = [*compiler, *FLAGS, f"-I{include}", "-c"]
        self._work = work

    def __call__(self, name: str, source: str, *flags: str) -> list[str]:
        return [*self._common, *flags, str(SOURCES / source), "-o", str(self._work / name)]


def _does_not_compile(error: str | None) -> str:
    return f"they do not compile: {_first_error(error)}" if error else ""


def _first_error(error: str) -> str:
    """The first line of a compiler's output that reports an error."""
    lines = error.splitlines()[1:]
    return next((line for line in lines if re.search("error|fatal", line, re.IGNORECASE)), lines[-1]).strip()


def _run_all(commands: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Run commands in parallel; returns the errors of those that fail."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = dict(zip(commands, pool.map(_error_of, commands.values()), strict=True))
    return {name: error for name, error in errors.items() if error is not None}


def _error_of(command: Sequence[str]) -> str | None:
    """Run a command; returns its output if it fails."""
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if finished.returncode == 0:
        return None
    return f"{shlex.join(command)}\nexit status {finished.returncode}\n{finished.stderr.strip()}"
