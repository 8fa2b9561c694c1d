"""The average of the weights: its formula, what it leaves alone, and whole runs with it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import main
from engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from engine.optim import WeightAverage
from tests.support.hooks import stop_at_step
from tests.support.tiny_run import write_experiment


def test_trained_weights_follow_and_the_others_are_kept() -> None:
    detector = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3).requires_grad_(False))
    average = WeightAverage(detector, decay=0.9)
    expected = detector[0].weight.detach().double()
    for step in range(200):
        with torch.no_grad():
            detector[0].weight.add_(torch.randn(3, 3))
            detector[1](torch.randn(8, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * detector[0].weight.detach().double()
    assert torch.allclose(average.detector[0].weight.double(), expected, atol=1e-5)
    assert torch.equal(average.detector[1].running_mean, detector[1].running_mean)
    assert average.detector[1].num_batches_tracked == 200
    assert torch.equal(average.detector[2].weight, detector[2].weight)
    assert not any(p.requires_grad for p in average.detector.parameters())
    assert not average.detector.training


SETTINGS = ["optim.epochs=2", "optim.ema_decay=0.9", "evaluation.every_epochs=1"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("data"), train=[3, 0, 2], val=[2, 1])


def train(experiment: Path, folder: Path, *settings: str) -> int:
    return main.main(["--config", str(experiment), "--set", f"runtime.output_dir={folder}", *SETTINGS, *settings])


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def checkpoint(folder: Path, name: str = "last.pth") -> Checkpoint:
    return load_checkpoint(folder / name)


def test_runs_evaluate_keep_continue_and_start_from_the_average(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, plain, parts, third = (tmp_path / name for name in ("whole", "plain", "parts", "third"))
    assert train(experiment, whole) == 0
    assert train(experiment, plain, "optim.ema_decay=0") == 0
    assert same(checkpoint(whole).model, checkpoint(plain).model)  # training does not depend on it
    assert checkpoint(plain).average == {}
    assert not same(checkpoint(whole).model, checkpoint(whole).average)

    stop_at_step(3, monkeypatch)
    assert train(experiment, parts) == 75
    monkeypatch.undo()
    assert main.main(["--resume", str(parts / "last.pth")]) == 0
    assert same(checkpoint(whole).average, checkpoint(parts).average)

    last = ["--eval", "--resume", str(whole / "last.pth")]
    assert main.main(last) == 0
    found, during = (
        (whole / folder / "evaluation.txt").read_text().split(" s per image")[0].rpartition("\n")[0]
        for folder in ("evaluation_last", "evaluation")
    )
    assert found == during
    start = [f"init_from={whole / 'last.pth'}", "optim.lr=1e-12", "optim.epochs=1", "optim.ema_decay=0"]
    assert train(experiment, third, *start) == 0
    expected = checkpoint(whole).average
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in checkpoint(third).model.items())
