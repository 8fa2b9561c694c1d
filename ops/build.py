"""Compile the C++ and CUDA kernels: `python -m ops.build`. Quick if they are built; without a compiler it says so.

It calls the compilers directly and needs neither setuptools nor ninja nor Python's headers. With an nvcc the library
also gets CUDA kernels, even without a GPU, for the devices of TORCH_CUDA_ARCH_LIST, by default 7.5 and newer;
D3Q_OPS_CUDA=0 skips them. `--check` prints every backend, its dtypes and its error against the definition, on every
device.
"""

import argparse
import errno
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.console import guard_console
from ops import cuda_build
from ops.compile import BuildError, NotBuiltError, compile_library, find_compiler
from ops.cuda_build import NoCudaError, Plan
from ops.library import (
    contents_of,
    fitting_libraries,
    library_folders,
    library_name,
    load_built_library,
    loaded_library,
    why_missing,
)
from ops.report import describe_backend, devices_here
from ops.self_test import HEADING, Result, cuda_self_test, self_test

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors of file systems without flock: concurrent builds then do the same work twice"""


@dataclass(frozen=True)
class Built:
    path: Path
    seconds: float  # of the build; 0 if it was built before
    without_cuda: str = ""  # why it has no CUDA kernels, if so
    without_cpu: str = ""  # why it has no CPU kernels, if so
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        when = f"built in {self.seconds:.0f} s" if self.seconds else "already built"
        contents = contents_of(self.path)
        gpus = f"GPUs ({', '.join(contents.architectures)}; CUDA {contents.toolkit})"
        if not contents.has_cpu:
            extent = f"for {gpus} only ({self.without_cpu})"
        elif contents.architectures:
            extent = f"for CPUs and for {gpus}"
        else:
            extent = f"for CPUs only ({self.without_cuda})"
        return f"{when} {extent}: {self.path}"


def build(*, with_cuda: bool = True) -> Built:
    """Compile the library unless it exists. CPU or CUDA kernels that do not compile are skipped.

    Raises NotBuiltError or BuildError.
    """
    plan: Plan | None = None
    without_cuda = "" if with_cuda else "not wanted"
    if with_cuda:
        try:
            plan = cuda_build.make_plan()
        except NoCudaError as reason:
            without_cuda = str(reason)
    if path := _already_built(plan, any_will_do=with_cuda and not cuda_build.is_turned_off()):
        with suppress(OSError):  # read-only
            path.touch()  # the newest library is loaded
        return Built(path, 0.0, without_cuda, remarks=plan.remarks if plan else ())
    compiler = find_compiler()
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch/csrc/stable/library.h").is_file():
        raise NotBuiltError(f"this torch comes without its C++ headers ({include})")
    folder = _writable_folder()
    remarks = list(plan.remarks) if plan else []
    with (
        _lock(folder / "build.lock", remarks),
        tempfile.TemporaryDirectory(dir=folder, prefix="tmp_") as work,
    ):
        if path := _already_built(plan):  # by the process that held the lock
            return Built(path, 0.0, without_cuda, remarks=tuple(remarks))
        start = time.perf_counter()
        made = compile_library(compiler, include, Path(work), plan)
        without_cuda = made.without_cuda or without_cuda
        architectures, toolkit = (plan.architectures, plan.toolkit) if plan and not made.without_cuda else ((), "")
        name = library_name(architectures, toolkit, has_cpu=not made.without_cpu)
        remarks += made.remarks
        built = Built(folder / name, 0.0, without_cuda, made.without_cpu, tuple(remarks))
        if there := fitting_libraries(name):  # the parts that compile were built before
            return replace(built, path=there[0])
        os.replace(made.library, built.path)
        return replace(built, seconds=max(time.perf_counter() - start, 0.01))


def _already_built(plan: Plan | None, *, any_will_do: bool = False) -> Path | None:
    """The library of the plan; without a plan, the one for CPUs.

    any_will_do   without an nvcc: any library with CPU kernels, even one with CUDA kernels that was built elsewhere
    """
    if plan is None and any_will_do:
        return next((path for path in fitting_libraries() if contents_of(path).has_cpu), None)
    name = library_name(plan.architectures, plan.toolkit) if plan else library_name()
    return next(iter(fitting_libraries(name)), None)


def build_and_try() -> tuple[Built, list[Result]]:
    """Build, load, and test the CUDA kernels on every visible GPU.

    If a library built by this call gives wrong numbers, it is deleted and one without CUDA kernels is built; no other
    library is ever deleted. Raises NotBuiltError or BuildError.
    """
    built = build()
    load_built_library()
    if built.path != loaded_library():
        return built, []
    results = cuda_self_test()
    wrong = [result for result in results if result.wrong]
    if not (wrong and built.seconds):
        return built, results
    fault = ", ".join(f"{each.dtype} errs on {each.device} by {_worst(each):.1e}" for each in wrong)
    built.path.unlink()
    plain = build(with_cuda=False)
    return replace(plain, without_cuda=f"the CUDA kernels fail here: {fault}"), []


def _worst(result: Result) -> float:
    return max(result.value_error, result.gradient_error)


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
def _lock(path: Path, remarks: list[str]) -> Iterator[None]:
    """Allow one build at a time; the system releases the lock when the process ends, however it ends.

    A file system without locks is a remark: each build works in its own temporary folder.
    """
    if sys.platform == "win32":
        raise NotBuiltError("the C++ kernels are not built on Windows")
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remarks.append(f"{path.parent} is on a file system without locks: built without one")
        yield


def _print_backends() -> None:
    """Print the backend of each device."""
    for device in (torch.device("cpu"), *devices_here(torch.device("cuda"))):
        try:
            print(f"ops: deformable attention runs with {describe_backend(device)}")
        except ValueError as error:
            print(f"ops: deformable attention does not run on {device}: {error}")


def _check() -> bool:
    """Print the table; returns whether every backend that runs agrees with the definition."""
    print(HEADING)
    results = self_test()
    print(*results, sep="\n")
    if not any(each.backend == "cpp" for each in results):
        print(f"cpp            not run: {why_missing()}")
    return _acceptable(results)


def _acceptable(results: Sequence[Result]) -> bool:
    """Whether nothing failed but on devices that cannot run the kernels or have no free memory."""
    return all(result.passed or (result.is_known and not result.wrong) for result in results)


def _build() -> bool:
    """Build and print the outcome; returns whether no test failed."""
    built, results = build_and_try()
    for remark in built.remarks:
        print(f"ops: {remark}")
    print(f"ops: {built}")
    for result in results:
        if result.wrong:
            print(
                f"ops: the CUDA kernels of this library, which was there, err on {result.device} by "
                f"{_worst(result):.1e} ({result.dtype}); D3Q_OPS_CUDA=0 python -m ops.build builds without them",
                file=sys.stderr,
            )
        elif result.not_run:
            print(f"ops: the CUDA kernels were not tried on {result.device}: {result.not_run}")
    if loaded_library() not in (None, built.path):
        print("ops: this process had loaded an earlier build; the next one loads this")
    return _acceptable(results)


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="build nothing; test every backend that is there")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "cuda:.*deformable attention runs with")  # printed below
    try:
        passed = _check() if options.check else _build()
    except NotBuiltError as reason:
        print(f"ops: C++ kernels not built: {reason}")
        passed = True
    except BuildError as error:
        print(f"ops: the C++ kernels cannot be compiled:\n{error}", file=sys.stderr)
        return 1
    _print_backends()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
