"""Compiles the C++ kernels: `python -m ops.build`. Quick where they are built; without a compiler it says so.

The compiler is called directly; neither setuptools nor ninja nor Python's headers are needed. `--check` prints every
backend, its dtypes and its error against the definition.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ops.library import (
    AVX2_FLAGS,
    FLAGS,
    SOURCES,
    built_library,
    has_avx2_variant,
    library_folders,
    library_name,
    load_built_library,
)
from ops.ms_deform_attn import choose_backend
from ops.self_test import self_test

COMPILERS = ("c++", "g++", "clang++")


class NotBuiltError(Exception):
    """Why nothing was compiled, where that is no mistake of anybody's."""


class BuildError(Exception):
    """A compiler is there and does not compile the library."""


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


def build() -> tuple[Path, float]:
    """Compiles the library unless it is there; returns its path and the seconds that it took.

    Raises NotBuiltError or BuildError.
    """
    if path := built_library():
        return path, 0.0
    compiler = find_compiler()
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch/csrc/stable/library.h").is_file():
        raise NotBuiltError(f"this torch comes without its C++ headers ({include})")
    folder = _writable_folder()
    with _lock(folder / "build.lock"):
        if path := built_library():  # by the process that held the lock
            return path, 0.0
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=folder, prefix="tmp_") as work:
            finished = _compile(compiler, include, Path(work))
            path = folder / library_name()
            os.replace(finished, path)
        return path, time.perf_counter() - start


def _compile(compiler: list[str], include: Path, work: Path) -> Path:
    kernels = SOURCES / "cpu_kernels.cpp"
    avx2 = ["-DD3Q_HAS_AVX2"] if has_avx2_variant() else []
    units: dict[str, tuple[Path, list[str]]] = {
        "baseline.o": (kernels, ["-DD3Q_VARIANT=baseline"]),
        "bindings.o": (SOURCES / "bindings.cpp", avx2),
    }
    if avx2:
        units["avx2.o"] = (kernels, ["-DD3Q_VARIANT=avx2", *avx2, *AVX2_FLAGS])
    for name, (source, flags) in units.items():
        _run([*compiler, *FLAGS, *flags, f"-I{include}", "-c", str(source), "-o", str(work / name)])
    objects = [str(work / name) for name in units]
    library = work / "library.so"
    _run([*compiler, "-shared", *objects, f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
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
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="build nothing; test every backend that is there")
    options = parser.parse_args(arguments)
    passed = True
    if options.check:
        passed = _check()
    else:
        try:
            path, seconds = build()
            print(f"ops: {f'built in {seconds:.0f} s' if seconds else 'already built'}: {path}")
            load_built_library()
        except NotBuiltError as reason:
            print(f"ops: C++ kernels not built: {reason}")
        except BuildError as error:
            print(f"ops: the C++ kernels cannot be compiled:\n{error}", file=sys.stderr)
            return 1
    print(f"ops: deformable attention runs with {_describe_backends()}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
