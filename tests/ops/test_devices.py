"""GPUs on which the CUDA kernels do not run: make-believe ones, as the kernels' errors are all that matters."""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ops import cuda_kernels, devices, report
from ops.backends import choose_backend, forced_backend

operator = importlib.import_module("ops.ms_deform_attn")  # `ops.ms_deform_attn` is the function
LIBRARY = Path("ms_deform_attn_torch2.14.1_0123456789abcdef_cuda13.0_80_90+PTX.so")


class Gpus:
    """What comes of a call of the kernels on each device; and how often they were called there."""

    def __init__(self) -> None:
        self.faults: dict[int, str | None] = {}
        self.calls: list[int] = []

    def numbers_are_right(self, device: torch.device) -> bool:
        self.calls.append(device.index)
        fault = self.faults.get(device.index)
        if fault == "wrong":
            return False
        if fault is not None:
            raise RuntimeError(f"ms_deform_attn: {fault} (python -m ops.build compiles for ...)")
        return True


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    found = Gpus()
    monkeypatch.setattr(devices, "_tried", {})
    monkeypatch.setattr(devices, "_warned", set())
    monkeypatch.setattr(devices, "numbers_are_right", found.numbers_are_right)
    for module in (devices, report):
        monkeypatch.setattr(module, "loaded_library", lambda: LIBRARY)
    monkeypatch.setattr(cuda_kernels, "are_loaded", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    with forced_backend("auto"):
        yield found


SITUATIONS = {
    "driver older than the toolkit": (
        "CUDA driver version is insufficient for CUDA runtime version",
        "built with CUDA 13.0, for which the driver (CUDA 12.4) is too old; update the driver, or build with an older "
        "toolkit: CUDA_HOME=",
    ),
    "other architecture": (
        "no kernel image is available for execution on the device",
        "built for other GPUs (80, 90+PTX) than this, of 10.0; run TORCH_CUDA_ARCH_LIST=10.0 python -m ops.build",
    ),
    "damaged code": ("device kernel image is invalid", "run TORCH_CUDA_ARCH_LIST=10.0 python -m ops.build"),
    "PTX newer than the driver": (
        "the provided PTX was compiled with an unsupported toolchain.",
        "no machine code for 10.0, and the driver (CUDA 12.4) cannot compile their PTX, which CUDA 13.0 made; run "
        "TORCH_CUDA_ARCH_LIST=10.0 python -m ops.build, or update the driver",
    ),
    "PTX that fails": ("a PTX JIT compilation failed", "run TORCH_CUDA_ARCH_LIST=10.0 python -m ops.build"),
    "no PTX compiler": ("PTX JIT compiler library not found", "run TORCH_CUDA_ARCH_LIST=10.0 python -m ops.build"),
    "PTX compiler turned off": ("PTX JIT compilation was disabled", "run TORCH_CUDA_ARCH_LIST=10.0"),
    "driver of two versions": (
        "system has unsupported display driver / cuda driver combination",
        "restart the machine after an update of the driver",
    ),
    "compatibility package": ("forward compatibility was attempted on non supported HW", "take a container without"),
    "device unseen": ("invalid device ordinal", "set CUDA_VISIBLE_DEVICES before the process starts"),
    "anything else": ("misaligned address", "the CUDA kernels fail there: ms_deform_attn: misaligned address"),
    "wrong numbers": ("wrong", "give wrong numbers there; D3Q_OPS_CUDA=0 python -m ops.build"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_kernels_that_do_not_run_are_noticed_and_said_once_per_device(name: str, gpus: Gpus) -> None:
    fault, words = SITUATIONS[name]
    gpus.faults = {0: fault}
    with pytest.warns(UserWarning, match=r"^cuda:0: deformable attention runs with grid_sample: ") as said:
        chosen = [choose_backend("cuda", index) for index in (0, 1, 0, 1, 0)]
    assert chosen == ["grid_sample", "cuda", "grid_sample", "cuda", "grid_sample"]
    assert gpus.calls == [0, 1]
    assert len(said) == 1
    message = str(said[0].message)
    assert words in message
    assert (
        str(report.describe_backend(torch.device("cuda", 0)))
        in message.replace("cuda:0: deformable attention runs with grid_sample: ", "grid_sample on cuda:0 (") + ")"
    )
    with forced_backend("cuda"), pytest.raises(ValueError, match=r"^D3Q_OPS_BACKEND=cuda: ") as raised:
        choose_backend("cuda", 0)
    assert message.partition("grid_sample: ")[2] in str(raised.value)
    assert gpus.calls == [0, 1]


def test_both_devices_are_said(gpus: Gpus) -> None:
    gpus.faults = {0: "no kernel image is available", 1: "no kernel image is available"}
    with pytest.warns(UserWarning, match="other GPUs") as said:
        assert [choose_backend("cuda", index) for index in (0, 1, 0)] == ["grid_sample"] * 3
    assert [str(each.message)[:6] for each in said] == ["cuda:0", "cuda:1"]


def test_a_device_that_is_too_old(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.warns(UserWarning, match=r"need compute capability 7\.5, cuda:0 has 7\.0; D3Q_OPS_BACKEND=grid_sample"):
        assert choose_backend("cuda", 0) == "grid_sample"
    assert gpus.calls == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_backend("cuda", 1) == "cuda"


@pytest.mark.parametrize("fault", ["CUDA out of memory. Tried to allocate", "out of memory", "busy or unavailable"])
def test_a_full_device_is_no_verdict(fault: str, gpus: Gpus) -> None:
    gpus.faults = {0: fault}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("cuda", 0) == "cuda"
    gpus.faults = {0: "no kernel image is available"}
    with pytest.warns(UserWarning, match="other GPUs"):
        assert choose_backend("cuda", 0) == "grid_sample"


def test_nothing_is_tried_while_a_graph_is_captured(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose_backend("cuda", 0) == "cuda"
    assert gpus.calls == []


def test_another_backend_tries_nothing(gpus: Gpus) -> None:
    gpus.faults = {0: "no kernel image is available"}
    with forced_backend("grid_sample"):
        assert str(report.describe_backend(torch.device("cuda", 0))) == (
            "grid_sample on cuda:0 (as D3Q_OPS_BACKEND says)"
        )
    assert gpus.calls == []


def test_devices_of_which_the_same_is_true_share_a_line(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    here = report.devices_here(torch.device("cuda"))
    assert list(map(str, report.together(map(report.describe_backend, here)))) == [
        f"cuda on cuda:0, cuda:1 ({LIBRARY})"
    ]
    monkeypatch.setattr(devices, "_tried", {})
    gpus.faults = {1: "no kernel image is available"}
    with pytest.warns(UserWarning, match="other GPUs"):
        lines = list(map(str, report.together(map(report.describe_backend, here))))
    assert [line.partition(" (")[0] for line in lines] == ["cuda on cuda:0", "grid_sample on cuda:1"]
    monkeypatch.setattr(cuda_kernels, "are_loaded", lambda: False)
    assert "has no CUDA kernels; run python -m ops.build where there is an nvcc" in str(
        report.describe_backend(torch.device("cuda", 0))
    )
