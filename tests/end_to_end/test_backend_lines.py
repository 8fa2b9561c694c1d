"""What computes deformable attention, and from which library, in the first lines of every run and of a check."""

import importlib
from pathlib import Path

import pytest
import torch

import main
from ops import report
from ops.backends import forced_backend
from tests.support.tiny_run import write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> list[str]:
    config = write_experiment(tmp_path, train=[2, 1], val=[1])
    return ["--config", str(config), "--set", f"runtime.output_dir={tmp_path / 'run'}", "optim.epochs=1"]


def on_cpu() -> str:
    return str(report.describe_backend(torch.device("cpu")))


def test_a_run_names_backend_and_library(
    experiment: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(experiment) == 0
    log = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(log) if "epoch" in line and "loss" in line)
    assert sum(f"deformable attention: {on_cpu()}" in line for line in log[:first]) == 1
    assert main.main(["--eval", "--resume", str(tmp_path / "run/last.pth")]) == 0
    assert f"deformable attention: {on_cpu()}" in capsys.readouterr().out


def test_a_check_names_backend_and_library(experiment: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*experiment, "--check"]) == 0
    printed = capsys.readouterr().out
    assert "deformable attention: ok" in printed
    assert f"\n  {on_cpu()}\n" in printed
    library = report.loaded_library()
    assert f"cpp on cpu ({library})" == on_cpu() if library else "python -m ops.build" in on_cpu()


def test_a_backend_that_cannot_run_ends_the_run_before_its_first_step(
    experiment: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("ops.ms_deform_attn").cuda_kernels, "are_loaded", lambda: True)
    with forced_backend("cuda"):
        assert main.main(experiment) == 2
        assert "D3Q_OPS_BACKEND=cuda runs on GPUs, the tensors are on cpu; choose auto" in capsys.readouterr().err
        assert main.main([*experiment, "--check"]) != 0
        assert "D3Q_OPS_BACKEND=cuda runs on GPUs" in capsys.readouterr().out
