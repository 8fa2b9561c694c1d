"""Building the C++ kernels: where it writes, what it refuses to load, and what it says where it cannot."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import build, compile, library

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compile.COMPILERS)),
    reason=f"no C++ compiler: none of {', '.join(compile.COMPILERS)} in PATH",
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Sources to change and folders to build in; what is built is not loaded into this process."""
    shutil.copytree(library.SOURCES, tmp_path / "csrc")
    folders = [tmp_path / "beside", tmp_path / "cache"]
    for module in (library, compile):
        monkeypatch.setattr(module, "SOURCES", tmp_path / "csrc")
    for module in (library, build):
        monkeypatch.setattr(module, "library_folders", lambda: folders)
    monkeypatch.setattr(build, "load_built_library", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("D3Q_OPS_CUDA", "0")  # tests/ops/cuda/test_cuda_build.py builds with CUDA
    return folders


def start(code: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Python in a copy of ops/, with a cache folder of its own; builds there are without CUDA."""
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    variables |= {"D3Q_OPS_CUDA": "0"} | environment
    if "D3Q_OPS_BACKEND" not in environment:
        variables.pop("D3Q_OPS_BACKEND", None)
    command = [sys.executable, *code]
    return subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    (tmp_path / "engine").mkdir()
    shutil.copy(ROOT / "engine" / "console.py", tmp_path / "engine")
    return tmp_path


def test_the_name_follows_sources_torch_and_flags(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [library.library_name()]
    kernels = library.SOURCES / "cpu_kernels.cpp"
    kernels.write_text(kernels.read_text() + "\n")
    names.append(library.library_name())
    kernels.rename(kernels.with_name("kernels.cpp"))
    names.append(library.library_name())
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    names.append(library.library_name())
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-g"))
    names.append(library.library_name())
    assert len(set(names)) == len(names)


def test_a_build_of_other_sources_is_not_found(folders: list[Path]) -> None:
    folders[0].mkdir()
    (folders[0] / library.library_name()).touch()
    assert library.fitting_libraries() == [folders[0] / library.library_name()]
    header = library.SOURCES / "cpu_kernels.h"
    header.write_text(header.read_text() + "\n")
    assert library.fitting_libraries() == []


def test_no_compiler_is_no_failure(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert build.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("ops: C++ kernels not built: no C++ compiler (c++, g++, clang++) in PATH; install one")
    assert printed[1].startswith("ops: deformable attention runs with ")
    assert not any(folder.exists() for folder in folders)


def test_torch_without_headers_is_no_failure(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: ["c++"])
    monkeypatch.setattr(torch, "__file__", str(folders[0] / "torch/__init__.py"))
    assert build.main([]) == 0
    assert "this torch comes without its C++ headers" in capsys.readouterr().out


def test_a_compiler_that_is_not_there_is_a_failure(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O0")
    assert build.main([]) == 1
    assert "CXX=no-such-compiler -O0: no such program" in capsys.readouterr().err


@needs_compiler
def test_sources_that_do_not_compile_are_a_failure(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    kernels = library.SOURCES / "cpu_kernels.cpp"
    kernels.write_text("this is not C++;\n" + kernels.read_text())
    assert build.main([]) == 1
    printed = capsys.readouterr().err
    assert "cannot be compiled" in printed
    assert "cpu_kernels.cpp:1" in printed
    assert library.fitting_libraries() == []
    assert [path.name for path in folders[0].iterdir()] == ["build.lock"]


@needs_compiler
def test_a_read_only_folder_sends_the_build_to_the_cache(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders[0].write_text("a file, so that no folder can be here: root may write to read-only ones")
    monkeypatch.setenv("CXX", next(filter(None, map(shutil.which, compile.COMPILERS))))
    assert build.main([]) == 0
    assert library.fitting_libraries() == [folders[1] / library.library_name()]
    assert "ops: built in" in capsys.readouterr().out
    assert build.main([]) == 0
    assert "ops: already built" in capsys.readouterr().out


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks(
    code: int, folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(build, "find_compiler", lambda: ["c++"])
    monkeypatch.setattr(build, "compile_library", lambda compiler, include, work, plan: made_in(work))
    assert build.main([]) == 0
    assert library.fitting_libraries() == [folders[0] / library.library_name()]
    assert f"{folders[0]} is on a file system without locks: built without one" in capsys.readouterr().out


def test_another_error_of_a_lock_is_one(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(build, "find_compiler", lambda: ["c++"])
    with pytest.raises(OSError, match="Input/output error"):
        build.build()


def made_in(folder: Path) -> compile.Made:
    (folder / "library.so").touch()
    return compile.Made(folder / "library.so")


def test_no_folder_to_write_to_is_no_failure(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: ["c++"])
    for folder in folders:
        folder.touch()
    assert build.main([]) == 0
    assert "no folder to write to" in capsys.readouterr().out


@needs_compiler
def test_two_builders_at_once(copy: Path) -> None:
    builders = [start(["-m", "ops.build"], copy) for _ in range(2)]
    outputs = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    said = sorted(output.split()[1] for output, _ in outputs)
    assert said == ["already", "built"], outputs
    assert all("runs with cpp on cpu (" in output for output, _ in outputs)
    assert len(list((copy / "ops/_build").glob("*.so"))) == 1
    assert {path.suffix for path in (copy / "ops/_build").iterdir()} == {".so", ".lock"}
    check = start(["-m", "ops.build", "--check"], copy, D3Q_OPS_BACKEND="cpp")
    table, errors = check.communicate(timeout=300)
    assert check.returncode == 0, errors
    rows = [line.split() for line in table.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["cpp"] * 4 + ["embedding_bag"] * 4 + ["grid_sample"] * 4 + ["gather"] * 4
    assert all(row[-1] == "ok" for row in rows)


def test_the_import_writes_nothing_and_the_operator_works_without_a_library(copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    code = (
        "import torch, ops; from ops.library import is_loaded; assert not is_loaded()\n"
        "value, weights = torch.ones(1, 6, 1, 8), torch.ones(1, 2, 1, 1, 1, requires_grad=True)\n"
        "output = torch.ops.d3q.ms_deform_attn(value, [2, 3], torch.full((1, 2, 1, 1, 1, 2), 0.5), weights)\n"
        "output.sum().backward(); assert output.sum() == 16 and weights.grad.sum() == 16\n"
        "from ops.backends import choose_backend; print(choose_backend('cpu'))"
    )
    run = start(["-c", code], copy, PATH="")
    output, errors = run.communicate(timeout=120)
    assert (run.returncode, output.strip()) == (0, "embedding_bag"), errors
    assert sorted(copy.rglob("*")) == before


def test_a_damaged_library_is_a_warning(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "ops/_build").mkdir()
    (copy / "ops/_build" / library.library_name()).write_text("cut off")
    run = start(["-c", "import ops; from ops.backends import choose_backend as c; print(c('cpu'))"], copy)
    output, errors = run.communicate(timeout=120)
    assert (run.returncode, output.strip()) == (0, "embedding_bag"), errors
    assert "cannot be loaded, deformable attention runs in pure PyTorch; delete the file" in errors


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (
            "ms_deform_attn_torch2.9.1+cu126_0123456789abcdef_cuda12.6_80_90+PTX.so",
            "with torch 2.9.1+cu126, this is 2.",
        ),
        ("ms_deform_attn_cb4d36d8a9453a0d.so", "by an earlier version of this code"),
        (f"ms_deform_attn_torch{torch.__version__}_0123456789abcdef.so", "from other sources"),
    ],
)
def test_a_library_of_another_torch_or_source_is_said_once(name: str, made: str, copy: Path) -> None:
    (copy / "ops/_build").mkdir()
    (copy / "ops/_build" / name).touch()
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "import torch, ops; from ops.library import load_built_library\n"
        "weights = torch.ones(1, 1, 1, 1, 1)\n"
        "ops.ms_deform_attn(torch.ones(1, 1, 1, 1), [(1, 1)], torch.ones(1, 1, 1, 1, 1, 2), weights)\n"
        "from ops.report import describe_backend; print(describe_backend(torch.device('cpu')))"
    )
    run = start(["-c", code], copy)
    output, errors = run.communicate(timeout=120)
    words = f"{name} was built {made}"
    assert run.returncode == 0, errors
    assert (errors.count("UserWarning"), errors.count(words), output.count(words)) == (1, 1, 1), errors + output
    assert output.startswith("embedding_bag on cpu (")
    assert "run python -m ops.build" in errors
    assert "run python -m ops.build" in output
    check = start(["-m", "ops.build", "--check"], copy)
    output, errors = check.communicate(timeout=120)
    assert (check.returncode, errors) == (0, "")
    assert f"cpp            not run: {copy}/ops/_build/{words}" in output


@pytest.mark.parametrize(
    ("name", "message"), [("fast", "backend 'fast'; choose auto, cpp, cuda, embedding_bag, grid_sample, gather"),
                          ("cpp", "the library is not built for this code and torch; run python -m ops.build"),
                          ("cuda", "the library has no CUDA kernels; run python -m ops.build with an nvcc")]
)  # fmt: skip
def test_the_environment_names_a_backend_that_cannot_run(name: str, message: str, copy: Path) -> None:
    code = (
        "import torch, ops\n"
        "ops.ms_deform_attn(torch.ones(1, 1, 1, 1), [(1, 1)], torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))"
    )
    run = start(["-c", code], copy, D3Q_OPS_BACKEND=name)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert message in errors
