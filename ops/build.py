"""Compiles the C++ and CUDA kernels: `python -m ops.build`. Quick where they are built; without a compiler it says so.

The compilers are called directly; neither setuptools nor ninja nor Python's headers are needed. CUDA kernels join the
library where there is an nvcc, with or without a GPU: for the devices of TORCH_CUDA_ARCH_LIST, by default 8.0 and
newer; D3Q_OPS_CUDA=0 leaves them out. `--check` prints every backend, its dtypes and its error against the definition.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from console import guard_console
from ops import cuda_build, cuda_kernels
from ops.cuda_build import NoCudaError
from ops.library import (
    AVX2_FLAGS,
    FLAGS,
    SOURCES,
    architectures_of,
    built_library,
    has_avx2_variant,
    library_folders,
    library_name,
    load_built_library,
    loaded_library,
)
from ops.ms_deform_attn import choose_backend
from ops.self_test import cuda_self_test, self_test

COMPILERS = ("c++", "g++", "clang++")


class NotBuiltError(Exception):
    """Why nothing was compiled, where that is no mistake of anybody's."""


class BuildError(Exception):
    """A compiler is there and does not compile the library."""


class CudaBuildError(Exception):
    """The CUDA kernels do not compile, which is no reason to do without the others."""


def find_compiler() -> list[str]:
    """The command of CXX, or the first C++ compiler in PATH."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        if shutil.which(wanted[0]) is None:
            raise BuildError(f"CXX={shlex.join(wanted)}: no such program; name a C++ compiler or unset CXX")
        return wanted
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise NotBuiltError(f"no C++ compiler ({', '.join(COMPILERS)}) in PATH; install one, e.g. apt-get install g++")


@dataclass(frozen=True)
class Built:
    path: Path
    seconds: float  # that it took; 0 where it was there
    without_cuda: str  # why it has no CUDA kernels, where it has none

    def __str__(self) -> str:
        when = f"built in {self.seconds:.0f} s" if self.seconds else "already built"
        architectures = ", ".join(architectures_of(self.path))
        extent = f"for CPUs and for GPUs ({architectures})" if architectures else f"for CPUs only ({self.without_cuda})"
        return f"{when} {extent}: {self.path}"


def build() -> Built:
    """Compiles the library unless it is there. CUDA kernels that do not compile are left out.

    Raises NotBuiltError or BuildError.
    """
    nvcc, without_cuda = "", ""
    architectures: tuple[str, ...] = ()
    try:
        nvcc, architectures = cuda_build.find_nvcc(), cuda_build.architectures()
    except NoCudaError as reason:
        without_cuda = str(reason)
    # Without an nvcc, CUDA kernels that were built with one are welcome too.
    wanted = library_name(architectures) if architectures or cuda_build.is_turned_off() else None
    if path := built_library(wanted):
        with suppress(OSError):  # where it is read-only, it stays as it is
            path.touch()  # of several, the newest is loaded
        return Built(path, 0.0, without_cuda)
    compiler = find_compiler()
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch/csrc/stable/library.h").is_file():
        raise NotBuiltError(f"this torch comes without its C++ headers ({include})")
    folder = _writable_folder()
    with _lock(folder / "build.lock"), tempfile.TemporaryDirectory(dir=folder, prefix="tmp_") as work:
        if path := built_library(wanted):  # by the process that held the lock
            return Built(path, 0.0, without_cuda)
        start = time.perf_counter()
        finished = None
        if architectures:
            try:
                finished = _compile(compiler, include, Path(work), nvcc, architectures)
            except CudaBuildError as error:
                without_cuda, architectures = str(error), ()
                if path := built_library(library_name()):
                    return Built(path, 0.0, without_cuda)
        path = folder / library_name(architectures)
        os.replace(finished or _compile(compiler, include, Path(work)), path)
        return Built(path, time.perf_counter() - start, without_cuda)


def _build_and_try() -> Built:
    """Builds and loads; CUDA kernels that turn out wrong on this machine's GPU are taken out again."""
    built = build()
    load_built_library()
    if built.path == loaded_library() and (fault := _fault_on_gpu()):
        built.path.unlink()
        os.environ["D3Q_OPS_CUDA"] = "0"
        built = replace(build(), without_cuda=f"the CUDA kernels fail here: {fault}")
    return built


def _fault_on_gpu() -> str:
    """What is wrong with the loaded CUDA kernels; nothing where there are none or no GPU."""
    if not (cuda_kernels.are_loaded() and torch.cuda.is_available()):
        return ""
    try:
        failed = [result for result in cuda_self_test() if not result.passed]
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return ", ".join(f"{each.dtype} errs by {max(each.value_error, each.gradient_error):.1e}" for each in failed)


def _compile(
    compiler: list[str], include: Path, work: Path, nvcc: str = "", architectures: tuple[str, ...] = ()
) -> Path:
    """The library, with CUDA kernels for the architectures. Raises BuildError, or CudaBuildError where those fail."""
    objects: list[str] = []
    link = [*compiler, "-shared"]
    if architectures:
        # What is more than the name of a compiler, nvcc would not understand; it then takes the one that it finds.
        through = [nvcc, *(["-ccbin", *compiler] if len(compiler) == 1 else [])]
        link = [*through, *cuda_build.LINK_FLAGS]
        commands = cuda_build.compile_commands(through, architectures, SOURCES, work)
        commands |= _cpp_commands(compiler, include, work, {"cuda_bindings.o": ("cuda_bindings.cpp", [])})
        with _as_cuda_error():
            _run_all(commands.values())
        objects += commands
    avx2 = ["-DD3Q_HAS_AVX2"] if has_avx2_variant() else []
    units = {"baseline.o": ("cpu_kernels.cpp", ["-DD3Q_VARIANT=baseline"]), "bindings.o": ("bindings.cpp", avx2)}
    if avx2:
        units["avx2.o"] = ("cpu_kernels.cpp", ["-DD3Q_VARIANT=avx2", *avx2, *AVX2_FLAGS])
    commands = _cpp_commands(compiler, include, work, units)
    _run_all(commands.values())
    objects += commands
    library = work / "library.so"
    torch_libraries = [f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    with _as_cuda_error() if architectures else nullcontext():
        _run([*link, *(str(work / name) for name in objects), *torch_libraries, "-o", str(library)])
    return library


def _cpp_commands(
    compiler: list[str], include: Path, work: Path, units: dict[str, tuple[str, list[str]]]
) -> dict[str, list[str]]:
    """Name of the object file -> the command that makes it in `work`; units: its source and flags of its own."""
    common = [*compiler, *FLAGS, f"-I{include}", "-c"]
    return {
        name: [*common, *flags, str(SOURCES / source), "-o", str(work / name)]
        for name, (source, flags) in units.items()
    }


@contextmanager
def _as_cuda_error() -> Iterator[None]:
    """Inside, what fails are the CUDA kernels; of what the compiler says, its first line about an error is kept."""
    try:
        yield
    except BuildError as error:
        lines = str(error).splitlines()[1:]
        first = next((line for line in lines if re.search("error|fatal", line, re.IGNORECASE)), lines[-1])
        raise CudaBuildError(f"they do not compile: {first.strip()}") from None


def _run_all(commands: Iterable[Sequence[str]]) -> None:
    """Several at once; BuildError for the first that fails."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))


def _run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if finished.returncode:
        raise BuildError(f"{shlex.join(command)}\nexit status {finished.returncode}\n{finished.stderr.strip()}")


def _writable_folder() -> Path:
    for folder in library_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise NotBuiltError(f"no folder to write to: {', '.join(map(str, library_folders()))}")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the system lets go of the lock when the process ends, however it ends."""
    if sys.platform == "win32":
        raise NotBuiltError("the C++ kernels are not built on Windows")
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _describe_backends() -> str:
    chosen = []
    for device, name in (("cpu", "CPUs"), ("cuda", "GPUs")):
        try:
            chosen.append(f"{choose_backend(device)} on {name}")
        except ValueError as error:
            chosen.append(f"none on {name} ({error})")
    return ", ".join(chosen)


def _check() -> bool:
    """Prints the table; whether every backend agrees with the definition."""
    print(f"{'backend':14} {'dtype':9} {'value error':>12} {'gradient error':>15}")
    results = self_test()
    for each in results:
        name = str(each.dtype).removeprefix("torch.")
        verdict = "ok" if each.passed else "FAILED"
        print(f"{each.backend:14} {name:9} {each.value_error:12.1e} {each.gradient_error:15.1e}  {verdict}")
    if not any(each.backend == "cpp" for each in results):
        print("cpp            not built: python -m ops.build")
    return all(each.passed for each in results)


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="build nothing; test every backend that is there")
    options = parser.parse_args(arguments)
    passed = True
    if options.check:
        passed = _check()
    else:
        try:
            built = _build_and_try()
            print(f"ops: {built}")
            if loaded_library() not in (None, built.path):
                print("ops: this process had loaded an earlier build; the next one loads this")
                return 0
        except NotBuiltError as reason:
            print(f"ops: C++ kernels not built: {reason}")
        except BuildError as error:
            print(f"ops: the C++ kernels cannot be compiled:\n{error}", file=sys.stderr)
            return 1
    print(f"ops: deformable attention runs with {_describe_backends()}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
