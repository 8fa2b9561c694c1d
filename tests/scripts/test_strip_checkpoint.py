"""scripts/strip_checkpoint.py: weights only, in half precision, evaluated and predicted with as before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from scripts import strip_checkpoint
from tests.support.tiny_run import write_experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[3, 2], val=[4, 0])
    settings = [f"runtime.output_dir={folder / 'run'}", "optim.epochs=1"]
    assert main.main(["--config", str(config), "--set", *settings, "optim.ema_decay=0.5"]) == 0
    return folder / "run" / "last.pth"


def test_the_averaged_weights_are_kept_in_half_precision(trained: Path, tmp_path: Path) -> None:
    assert strip_checkpoint.main([str(trained), "--out", str(tmp_path / "x.pth"), "--set", "data.root=elsewhere"]) == 0
    whole, stripped = load_checkpoint(trained), load_checkpoint(tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < trained.stat().st_size / 4
    for name, value in whole.average.items():
        half = value.dtype == torch.float32
        assert stripped.model[name].dtype == (torch.float16 if half else value.dtype)
        assert torch.equal(stripped.model[name], value.half() if half else value)
    assert not stripped.optimizer
    assert "root: elsewhere" in stripped.config
    assert (stripped.categories, stripped.category_ids, stripped.resize_factor) == (
        *(whole.categories, whole.category_ids, whole.resize_factor),
    )


def test_full_precision_gives_the_evaluation_of_before(trained: Path, tmp_path: Path) -> None:
    assert strip_checkpoint.main([str(trained), "--out", str(tmp_path / "x.pth"), "--float32"]) == 0
    reports = []
    for path in (trained, tmp_path / "x.pth"):
        folder = tmp_path / path.stem
        assert main.main(["--eval", "--resume", str(path), "--set", f"runtime.output_dir={folder}"]) == 0
        reports.append(json.loads((folder / "evaluation.json").read_text())["detection"])
    assert reports[0] == reports[1]


def test_it_cannot_be_resumed_and_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert strip_checkpoint.main([str(trained), "--out", str(tmp_path / "x.pth")]) == 0
    assert main.main(["--resume", str(tmp_path / "x.pth")]) == 4
    assert "holds weights only" in capsys.readouterr().err


def test_a_checkpoint_without_average_gives_its_weights(trained: Path, tmp_path: Path) -> None:
    plain = replace(load_checkpoint(trained), average={})
    save_checkpoint(tmp_path / "plain.pth", plain)
    assert strip_checkpoint.main([str(tmp_path / "plain.pth"), "--out", str(tmp_path / "x.pth"), "--float32"]) == 0
    found = load_checkpoint(tmp_path / "x.pth").model
    assert all(torch.equal(found[name], value) for name, value in plain.model.items())


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert strip_checkpoint.main([str(tmp_path / "none.pth"), "--out", str(tmp_path / "x.pth")]) == 4
    assert "no such checkpoint" in capsys.readouterr().err
    (tmp_path / "x.pth").touch()
    with pytest.raises(SystemExit):
        strip_checkpoint.main([str(tmp_path / "none.pth"), "--out", str(tmp_path / "x.pth")])
