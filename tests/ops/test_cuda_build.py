"""Compiling the CUDA kernels: what comes of it, where the library loads, and what happens where they fail."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ops import build, cuda_build, cuda_kernels, library
from ops.self_test import Result

ROOT = Path(__file__).parents[2]
KERNELS = 2 * 6 * len(cuda_build.DTYPES)  # directions, widths
needs_nvcc = pytest.mark.skipif(
    not shutil.which("nvcc") or not any(map(shutil.which, build.COMPILERS)), reason="no nvcc or no C++ compiler in PATH"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is built; it is not loaded into this process."""
    for module in (library, build):
        monkeypatch.setattr(module, "library_folders", lambda: [tmp_path / "built"])
    monkeypatch.setattr(build, "load_built_library", lambda: None)
    for name in ("CXX", "D3Q_OPS_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or the one that comes with triton."""
    with_triton = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin"
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(with_triton))


def check_machine_code(path: Path, disassembler: str) -> None:
    """Loads of 16 bytes, no local memory, and reductions of 16 bytes on devices that have them."""
    listing = subprocess.run([disassembler, "-sass", str(path)], check=True, capture_output=True, text=True).stdout
    seen = 0
    for file in re.split(r"\nFatbin elf code:", listing)[1:]:
        newer = "arch = sm_90" in file
        for function in re.split(r"\n\s*Function : ", file)[1:]:
            name, _, code = function.partition("\n")
            seen += 1
            assert len(re.findall(r"LDG\.E\.128", code)) >= 4, name
            assert not re.search(r"\b(LDL|STL)\b", code), name
            assert ("F32x4" in code) == (newer and "backward" in name), name
    assert seen == 2 * KERNELS


def check_that_it_loads(path: Path, folder: Path) -> None:
    """In a process without a GPU too; no CUDA library is needed for it."""
    needed = subprocess.run(["ldd", str(path)], check=True, capture_output=True, text=True).stdout
    assert "libtorch_cpu" in needed
    assert not re.search("cudart|libcuda|torch_cuda", needed)
    shutil.copytree(ROOT / "ops", folder / "ops", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    code = (
        f"import torch, ops; torch.ops.load_library({str(path)!r})\n"
        "from ops.ms_deform_attn import choose_backend; print(choose_backend('cpu'), choose_backend('cuda'))"
    )
    variables = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "D3Q_OPS_BACKEND": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)
    assert run.stdout.split() == ["cpp", "cuda"], run.stderr


@needs_nvcc
def test_what_the_compiler_makes_of_the_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "FLAGS", (*cuda_build.FLAGS, "-Xptxas=-v"))
    said: list[str] = []

    def run_and_listen(command: Sequence[str]) -> None:
        said.append(subprocess.run(command, check=True, capture_output=True, text=True).stderr)

    monkeypatch.setattr(build, "_run", run_and_listen)
    built = build.build()
    assert library.architectures_of(built.path) == ["80", "90+PTX"]
    assert re.fullmatch(r"built in \d+ s for CPUs and for GPUs \(80, 90\+PTX\): .*\.so", str(built))
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", "\n".join(said))
    assert frames == [("0", "0", "0")] * (2 * KERNELS)
    check_that_it_loads(built.path, folder)
    if disassembler := cuobjdump():
        check_machine_code(built.path, disassembler)
    assert build.build().seconds == 0
    monkeypatch.setenv("PATH", "")  # CUDA kernels that are there serve where nvcc is not
    assert build.build().path == built.path


def test_kernels_that_do_not_compile_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A compiler that fails; the library without CUDA kernels is there already, to spare the time."""
    nvcc = folder / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'warning: old' >&2\necho 'nvcc fatal   : no such option' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder / "cuda"))
    monkeypatch.setattr(build, "find_compiler", lambda: ["true"])
    (folder / "built").mkdir()
    (folder / "built" / library.library_name()).touch()
    assert build.main([]) == 0
    assert (
        "already built for CPUs only (they do not compile: nvcc fatal   : no such option): " in capsys.readouterr().out
    )


def test_kernels_that_fail_on_this_gpu_are_taken_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "built").mkdir()
    plain, with_cuda = (folder / "built" / library.library_name(names) for names in ((), ("80",)))
    for path in (plain, with_cuda):
        path.touch()
    first = iter([build.Built(with_cuda, 30.0, "")])
    real_build = build.build
    monkeypatch.setattr(build, "build", lambda: next(first, None) or real_build())
    monkeypatch.setattr(build, "loaded_library", lambda: with_cuda)
    monkeypatch.setattr(cuda_kernels, "are_loaded", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(build, "cuda_self_test", lambda: [Result("cuda", torch.float16, 0.5, 0.25)])
    monkeypatch.setenv("D3Q_OPS_CUDA", "")
    assert build.main([]) == 0
    assert "for CPUs only (the CUDA kernels fail here: torch.float16 errs by 5.0e-01)" in capsys.readouterr().out
    assert (plain.exists(), with_cuda.exists()) == (True, False)


def test_cuda_can_be_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "built").mkdir()
    plain, with_cuda = (folder / "built" / library.library_name(names) for names in ((), ("80",)))
    for path in (plain, with_cuda):
        path.touch()
    os.utime(plain, (0, 0))
    assert library.built_library() == with_cuda
    monkeypatch.setenv("D3Q_OPS_CUDA", "0")
    built = build.build()
    assert (built.path, built.without_cuda) == (plain, "D3Q_OPS_CUDA=0")
    assert library.built_library() == plain, "what was asked for last is loaded"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", ("80", "90+PTX")), ("9.0a 8.0+PTX, 8.6", ("80+PTX", "86", "90a")), ("12.0;8.0", ("80", "120"))],
)
def test_architectures(wanted: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert cuda_build.architectures() == found


@pytest.mark.parametrize(
    ("wanted", "message"), [("8.0;Ampere", "'Ampere' is no number like 8.0"), ("7.5;8.0", "7.5 is older than 8.0")]
)
def test_architectures_that_are_none(wanted: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(cuda_build.NoCudaError, match=message):
        cuda_build.architectures()
