"""Compiling the CUDA kernels: what comes of it, where the library loads, and what happens where they fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import build, compile, cuda_build, cuda_kernels, devices, library
from ops.cuda_architectures import architectures
from ops.self_test import Result

ROOT = Path(__file__).parents[3]
needs_nvcc = pytest.mark.skipif(
    not shutil.which("nvcc") or not any(map(shutil.which, compile.COMPILERS)),
    reason="no nvcc or no C++ compiler in PATH",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is built; it is not loaded into this process."""
    for module in (library, build):
        monkeypatch.setattr(module, "library_folders", lambda: [tmp_path / "built"])
    monkeypatch.setattr(build, "load_built_library", lambda: None)
    for name in ("CXX", "D3Q_OPS_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def check_that_it_loads(path: Path, folder: Path) -> None:
    """In a process without a GPU too; no CUDA library is needed for it."""
    needed = subprocess.run(["ldd", str(path)], check=True, capture_output=True, text=True).stdout
    assert "libtorch_cpu" in needed
    assert not re.search("cudart|libcuda|torch_cuda", needed)
    shutil.copytree(ROOT / "ops", folder / "ops", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    code = (
        f"import torch, ops; torch.ops.load_library({str(path)!r})\n"
        "from ops.backends import choose_backend; print(choose_backend('cpu'), choose_backend('cuda'))"
    )
    variables = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "D3Q_OPS_BACKEND": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)
    assert run.stdout.split() == ["cpp", "cuda"], run.stderr


@needs_nvcc
def test_a_build_for_one_architecture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    built = build.build()
    contents = library.contents_of(built.path)
    assert (contents.torch, contents.architectures) == (torch.__version__, ("90+PTX",))
    extent = rf"for CPUs and for GPUs \(90\+PTX; CUDA {re.escape(contents.toolkit)}\)"
    assert re.fullmatch(rf"built in \d+ s {extent}: .*\.so", str(built))
    assert re.fullmatch(r"\d+\.\d+", contents.toolkit)
    check_that_it_loads(built.path, folder)
    assert build.build().seconds == 0
    monkeypatch.setenv("PATH", "")  # CUDA kernels that are there serve where nvcc is not
    monkeypatch.setattr(cuda_build, "USUAL_FOLDERS", ())
    assert build.build().path == built.path


def make_program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


FAKE_NVCC = """case "$*" in
    --version) echo "Cuda compilation tools, release 12.4, V12.4.99"; exit;;
    --list-gpu-arch) printf 'compute_%s\\n' 75 80 90; exit;;
esac
"""
FAKE_COMPILER = """while [ "$1" != -o ]; do shift; done
echo "$@" > "$2"
"""
FAILS = "echo 'warning: old' >&2\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n"


@pytest.fixture
def compilers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ compiler and an nvcc of 12.4, which write the files that they shall make and nothing into them."""
    monkeypatch.setenv("CUDA_HOME", str(folder / "cuda"))
    make_program(folder / "cuda/bin/nvcc", FAKE_NVCC + FAKE_COMPILER)
    monkeypatch.setenv("CXX", make_program(folder / "fake-c++", FAKE_COMPILER))
    return folder


def fail_for(pattern: str, program: str) -> str:
    return f'case "$*" in *{pattern}*) {FAILS};; esac\n{program}'


def test_cuda_kernels_that_do_not_compile_cost_no_others(compilers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_program(compilers / "cuda/bin/nvcc", FAKE_NVCC + FAILS)
    for when in ("built in 0 s", "already built"):
        assert build.main([]) == 0
        said = f"ops: {when} for CPUs only (they do not compile: x.cpp:1: error: no such thing): "
        assert f"{said}{compilers / 'built' / library.library_name()}\n" in capsys.readouterr().out


def test_cuda_kernels_that_do_not_link_cost_no_others(compilers: Path) -> None:
    make_program(compilers / "cuda/bin/nvcc", FAKE_NVCC + fail_for("library.so", FAKE_COMPILER))
    built = build.build()
    assert (built.path.name, built.without_cpu) == (library.library_name(), "")
    assert built.without_cuda == "they do not compile: x.cpp:1: error: no such thing"


@pytest.mark.parametrize("unit", ["VARIANT=baseline", "/bindings.cpp"])
def test_cpu_kernels_that_do_not_compile_cost_no_others(
    unit: str, compilers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(compilers / "fake-c++", fail_for(unit, FAKE_COMPILER))
    name = library.library_name(("75", "80", "90+PTX"), "12.4", has_cpu=False)
    for when in ("built in 0 s", "already built"):
        assert build.main([]) == 0
        said = f"ops: {when} for GPUs (75, 80, 90+PTX; CUDA 12.4) only (they do not compile: x.cpp:1: error: no such"
        assert said in capsys.readouterr().out
    assert [path.name for path in library.fitting_libraries()] == [name]
    assert not library.contents_of(Path(name)).has_cpu
    make_program(compilers / "fake-c++", FAKE_COMPILER)
    assert build.build().path.name == library.library_name(("75", "80", "90+PTX"), "12.4")


def test_without_avx2_where_only_that_does_not_compile(compilers: Path) -> None:
    make_program(compilers / "fake-c++", fail_for("-mavx2", FAKE_COMPILER))
    built = build.build()
    assert built.path.name == library.library_name(("75", "80", "90+PTX"), "12.4")
    assert (built.without_cuda, built.without_cpu) == ("", "")
    if compile.has_avx2_variant():
        assert built.remarks == ("without AVX2, which does not compile: x.cpp:1: error: no such thing",)


def test_nothing_that_compiles_is_a_failure(compilers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_program(compilers / "fake-c++", FAILS)
    assert build.main([]) == 1
    assert "the C++ kernels cannot be compiled:" in capsys.readouterr().err
    assert library.fitting_libraries() == []


def test_another_toolkit_builds_another_library(compilers: Path) -> None:
    assert build.build().path.name == library.library_name(("75", "80", "90+PTX"), "12.4")
    make_program(compilers / "cuda/bin/nvcc", FAKE_NVCC.replace("12.4", "12.6") + FAKE_COMPILER)
    newer = build.build()
    assert newer.seconds > 0
    assert newer.path.name == library.library_name(("75", "80", "90+PTX"), "12.6")
    assert library.contents_of(newer.path).toolkit == "12.6"


def test_where_nvcc_is_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [str(folder / "local/cuda"), str(folder / "local/cuda-*")]
    monkeypatch.setattr(cuda_build, "USUAL_FOLDERS", usual)
    monkeypatch.setenv("PATH", str(folder / "path"))
    with pytest.raises(cuda_build.NoCudaError, match=r"no nvcc in CUDA_HOME, CUDA_PATH, PATH or .*local/cuda"):
        cuda_build.find_nvcc()
    places = ["local/cuda-9.2/bin", "local/cuda-12.4/bin", "local/cuda/bin", "path", "named/bin", "home/bin"]
    monkeypatch.setenv("CUDA_PATH", str(folder / "named"))
    monkeypatch.setenv("CUDA_HOME", str(folder / "home"))
    for place in places:  # from the last choice to the first
        nvcc = make_program(folder / place / "nvcc", "")
        assert cuda_build.find_nvcc() == nvcc


@pytest.fixture
def on_gpus(compilers: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two make-believe GPUs, on which what was built is loaded; tests say what comes of the kernels there."""
    monkeypatch.setattr(devices, "_tried", {0: None, 1: None})
    monkeypatch.setattr(cuda_kernels, "are_loaded", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(build, "loaded_library", lambda: library.fitting_libraries()[0])
    monkeypatch.setattr(build, "_print_backends", lambda: None)
    return compilers


def results_by_device(monkeypatch: pytest.MonkeyPatch, results: dict[str, Result | RuntimeError]) -> None:
    def compare(backend: str, dtype: torch.dtype, device: torch.device) -> Result:
        result = results[str(device)]
        if isinstance(result, RuntimeError):
            raise result
        return result

    monkeypatch.setattr("ops.self_test._compare", compare)


RIGHT = Result("cuda", torch.float16, 1e-4, 1e-4, "cuda:0")
WRONG = Result("cuda", torch.float16, 0.5, 0.25, "cuda:1")


def test_a_library_that_errs_on_any_gpu_is_taken_out_by_the_call_that_built_it(
    on_gpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results_by_device(monkeypatch, {"cuda:0": RIGHT, "cuda:1": WRONG})
    earlier = on_gpus / "built" / library.library_name(("80",), "11.8")
    earlier.parent.mkdir()
    earlier.touch()
    assert build.main([]) == 0
    assert (
        "for CPUs only (the CUDA kernels fail here: torch.float16 errs on cuda:1 by 5.0e-01" in capsys.readouterr().out
    )
    left = {path.name for path in library.fitting_libraries()}
    assert left == {library.library_name(), earlier.name}


def test_a_library_of_before_is_never_deleted(
    on_gpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results_by_device(monkeypatch, {"cuda:0": RIGHT, "cuda:1": RIGHT})
    path, _ = build.build_and_try()
    results_by_device(monkeypatch, {"cuda:0": WRONG, "cuda:1": RIGHT})
    assert build.main([]) == 1
    assert library.fitting_libraries() == [path.path]
    assert "which was there, err on cuda:1 by 5.0e-01 (torch.float16); D3Q_OPS_CUDA=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA-capable device(s) is/are busy or unavailable"),
    ],
)
def test_a_gpu_that_is_full_says_nothing_about_the_kernels(
    error: RuntimeError, on_gpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results_by_device(monkeypatch, {"cuda:0": error, "cuda:1": RIGHT})
    assert build.main([]) == 0
    printed = capsys.readouterr().out
    assert f"were not tried on cuda:0: {error}" in printed
    assert "cuda:1" not in printed
    assert library.contents_of(library.fitting_libraries()[0]).architectures


@pytest.mark.parametrize(
    ("error", "code"), [("no kernel image is available for execution on the device", 0), ("misaligned address", 1)]
)
def test_a_gpu_on_which_the_kernels_do_not_run_keeps_the_library(
    error: str, code: int, on_gpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results_by_device(monkeypatch, {"cuda:0": RIGHT})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    fault = devices.explain(f"ms_deform_attn: {error}", torch.device("cuda", 1))
    monkeypatch.setattr(devices, "_tried", {0: None, 1: fault})
    assert build.main([]) == code
    assert f"not tried on cuda:1: {fault}" in capsys.readouterr().out
    assert library.contents_of(library.fitting_libraries()[0]).architectures


def test_cuda_can_be_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "built").mkdir()
    plain, with_cuda = (folder / "built" / library.library_name(names, "12.4") for names in ((), ("80",)))
    for path in (plain, with_cuda):
        path.touch()
    os.utime(plain, (0, 0))
    assert library.fitting_libraries()[0] == with_cuda
    monkeypatch.setenv("D3Q_OPS_CUDA", "0")
    built = build.build()
    assert (built.path, built.without_cuda) == (plain, "D3Q_OPS_CUDA=0")
    assert library.fitting_libraries()[0] == plain, "the last requested build is loaded"


OLD = "dropped: there are no kernels for GPUs older than 7.5"
KNOWN = frozenset([75, 80, 86, 87, 89, 90, 100, 120])


@pytest.mark.parametrize(
    ("wanted", "found", "remark"),
    [
        ("", "75 80 90+PTX", ""),
        (" ; ", "75 80 90+PTX", ""),
        ("7.5 8.0 8.6 9.0 10.0 12.0+PTX", "75 80 86 90 100 120+PTX", ""),
        ("5.2 6.0 7.0 7.5 8.0 8.6 9.0+PTX", "75 80 86 90+PTX", f"5.2, 6.0, 7.0 {OLD}"),
        ("9.0a 8.0+PTX, 8.6", "80+PTX 86 90a", ""),
        ("12.0;8.0;", "80 120", ""),
        ("8.0 8.0+PTX,8.0", "80+PTX", ""),
        ("Ampere", "80 86+PTX", ""),
        ("turing;Ada;Hopper", "75+PTX 89+PTX 90+PTX", ""),
        ("Volta;8.0", "80+PTX", f"7.0+PTX {OLD}"),
        ("Ampere+Tegra", "87", ""),
        ("sm_80 90 compute_120", "80 90 120+PTX", ""),
        ("'8.6-real;9.0-virtual'", "86 90+PTX", ""),
        ("All", "75 80 86 87 89 90 100 120+PTX", ""),
        ("Common", "75 80 90+PTX", ""),
        ("8.0;13.0+PTX", "80+PTX", "13.0+PTX dropped: this nvcc compiles for 7.5, 8.0, 8.6, 8.7, 8.9, 9.0, 10.0, 12.0"),
        ("fast;8.0", "80", "fast dropped: no number like 8.0 or 9.0+PTX and no name like Ampere"),
        ("fast", "75 80 90+PTX", "nothing is left, built for 7.5, 8.0, 9.0+PTX"),
        ("native", "75 80 90+PTX", "native, and no GPU is visible: built for 7.5, 8.0, 9.0+PTX"),
    ],
)
def test_architectures(wanted: str, found: str, remark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    names, remarks = architectures(KNOWN)
    assert names == tuple(found.split())
    assert bool(remarks) == bool(remark)
    assert remark in "\n".join(remarks)


def test_the_architectures_of_the_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (7, 0), (9, 0)][index])
    assert architectures(KNOWN) == (("90",), [f"TORCH_CUDA_ARCH_LIST: 7.0 {OLD}"])


def test_a_compiler_that_does_not_tell_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;13.0")
    assert architectures(frozenset()) == (("80", "130"), [])


@pytest.mark.parametrize("wanted", ["7.0", "5.0;Pascal", "Volta fast"])
def test_architectures_without_kernels(wanted: str, compilers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(cuda_build.NoCudaError, match=OLD):
        cuda_build.make_plan()


def test_what_is_dropped_is_said_by_the_build(
    compilers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0 8.0 12.0+PTX;")
    for _ in range(2):
        assert build.main([]) == 0
        printed = capsys.readouterr().out
        assert f"ops: TORCH_CUDA_ARCH_LIST: 7.0 {OLD}\n" in printed
        assert "ops: TORCH_CUDA_ARCH_LIST: 12.0+PTX dropped: this nvcc compiles for 7.5, 8.0, 9.0 only\n" in printed
        assert "for GPUs (80+PTX; CUDA 12.4)" in printed
