"""The C++ kernels and their bindings under AddressSanitizer and UndefinedBehaviorSanitizer.

A copy of `ops/` is built with them, where the compiler has them; a process of its own then runs the fuzz test. What
reads or writes beside a tensor, or computes what C++ leaves undefined, ends that process.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = "400"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1"
RUNTIMES = ("libasan.so", "libubsan.so")


def runtimes() -> list[str]:
    """The sanitizers' libraries, which must be in the process before torch; [] where the compiler has none."""
    if not (compiler := shutil.which("g++")):
        return []
    found = []
    for name in RUNTIMES:
        run = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(run.stdout.strip())
        found += [str(path.resolve())] if path.is_absolute() and path.is_file() else []
    return found if len(found) == len(RUNTIMES) else []


pytestmark = pytest.mark.skipif(not runtimes(), reason="no g++ with AddressSanitizer and UndefinedBehaviorSanitizer")


def copy_project(folder: Path) -> None:
    shutil.copytree(ROOT / "ops", folder / "ops", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    library = folder / "ops" / "library.py"
    flags = library.read_text()
    assert flags.count('"-O3"') == 1
    library.write_text(flags.replace('"-O3"', '"-O0"'))  # the sanitizers see the same, and compiling takes a third
    (folder / "engine").mkdir()
    shutil.copy(ROOT / "engine" / "console.py", folder / "engine")
    for name in ("test_fuzz.py", "operator_cases.py"):
        target = folder / "tests" / "ops" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / "ops" / name, target)


def fuzz(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Build the copy with the sanitizers, and run its fuzz test against the compiled kernels."""
    environment = os.environ | {
        "CXX": f"g++ {SANITIZE}",
        "D3Q_OPS_CUDA": "0",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
    }
    # Without the runtimes the build must not try to load what it has built.
    build = "from ops.build import build; print(build())"
    built = subprocess.run([sys.executable, "-c", build], cwd=folder, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider",
         "tests/ops/test_fuzz.py", "-k", "kernels or cpp"],
        cwd=folder,
        env=environment
        | {
            "LD_PRELOAD": ":".join(runtimes()),
            "ASAN_OPTIONS": "detect_leaks=0",
            "D3Q_FUZZ_CALLS": CALLS,
        },
        capture_output=True,
        text=True,
    )  # fmt: skip


def test_no_access_outside_and_nothing_undefined(tmp_path: Path) -> None:
    copy_project(tmp_path)
    run = fuzz(tmp_path)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "3 passed" in run.stdout, run.stdout[-3000:]


def test_a_read_one_column_too_far_is_noticed(tmp_path: Path) -> None:
    copy_project(tmp_path)
    kernels = tmp_path / "ops" / "csrc" / "cpu_kernels.cpp"
    source = kernels.read_text()
    assert source.count("lower = row + 1 < height") == 1
    kernels.write_text(source.replace("lower = row + 1 < height", "lower = row + 1 <= height"))
    run = fuzz(tmp_path)
    assert run.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in run.stderr + run.stdout
