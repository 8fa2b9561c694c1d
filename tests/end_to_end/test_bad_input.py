"""Bad input beyond the table of test_bad_input_table.py: one clear message, the documented exit code, no traceback."""

import json
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands import train
from tests.support.tiny_run import write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=[2, 1], val=[1, 1])


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a run that must end with this exit code."""
    assert main.main(arguments) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    broken = tmp_path / "data" / "train" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    settings = ["--set", f"data.num_workers={workers}", f"runtime.output_dir={tmp_path / 'run'}"]
    message = fails(["--config", str(experiment), *settings], 3, capsys)
    assert str(broken) in message
    assert len(message.splitlines()) == 1


def test_missing_root(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["--config", str(experiment), "--set", "data.root=nowhere"], 3, capsys)
    assert "nowhere" in message
    assert "data.root" in message


def test_a_place_in_the_config_is_named_by_file_and_line(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.write_text(experiment.read_text().replace("min_queries", "min_querys"))
    message = fails(["--config", str(experiment)], 2, capsys)
    line = 1 + next(i for i, text in enumerate(experiment.read_text().splitlines()) if "min_querys" in text)
    assert f"{experiment}:{line}: model.d3q" in message
    assert "did you mean 'min_queries'" in message


@pytest.mark.parametrize(("weights", "fragment"), [("none/here.pth", "none/here.pth"), ("IMAGENET9", "IMAGENET1K_V1")])
def test_weights_that_are_not_there(
    experiment: Path, capsys: pytest.CaptureFixture[str], weights: str, fragment: str
) -> None:
    message = fails(["--config", str(experiment), "--set", f"model.backbone.weights={weights}"], 4, capsys)
    assert fragment in message
    assert "null" in message


def test_other_files_are_no_checkpoints(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["--config", str(experiment), "--set", "runtime.output_dir=run", "optim.epochs=1"]
    assert main.main(run) == 0
    assert "already holds a run" in fails(run, 2, capsys)
    for name, content in {"empty": b"", "text": b"hello"}.items():
        Path(f"{name}.pth").write_bytes(content)
        assert f"{name}.pth" in fails(["--eval", "--resume", f"{name}.pth"], 4, capsys)
    torch.save({"state_dict": {}}, "foreign.pth")
    assert "not a checkpoint of this project" in fails(["--eval", "--resume", "foreign.pth"], 4, capsys)


def test_diverged_training(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["optim.lr=1e30", "optim.clip_grad_norm=0", f"runtime.output_dir={tmp_path / 'run'}"]
    message = fails(["--config", str(experiment), "--set", *settings], 5, capsys)
    assert "optim.lr" in message


def test_skipped_annotations_and_images_without_objects_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path, train=[0, 0, 0, 2], val=[1])
    path = tmp_path / "data" / "train.json"
    coco = json.loads(path.read_text())
    coco["annotations"][1]["bbox"] = [9, 9, 0, 4]
    path.write_text(json.dumps(coco))
    settings = ["data.on_bad_annotation=skip", "optim.epochs=2", f"runtime.output_dir={tmp_path / 'run'}"]
    assert main.main(["--config", str(config), "--set", *settings]) == 0
    assert "dropped: {'zero_area': 1}" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_replaced_and_counted_where_that_is_allowed(tmp_path: Path, workers: int) -> None:
    config = write_experiment(tmp_path, train=[2, 1, 3], val=[1])
    broken = tmp_path / "data" / "train" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    settings = ["data.on_bad_image=skip", f"data.num_workers={workers}", f"runtime.output_dir={tmp_path / 'run'}"]
    assert main.main(["--config", str(config), "--set", "optim.epochs=2", *settings]) == 0
    assert load_checkpoint(tmp_path / "run" / "last.pth").progress.replaced == 2


def test_too_little_memory(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr(train, "build_criterion", lambda config: exhaust)
    settings = ["--set", f"runtime.output_dir={tmp_path / 'run'}"]
    message = fails(["--config", str(experiment), *settings], 6, capsys)
    for part in ("image 10 with 2 objects", "image 11 with 1 objects", "queries", "9.00 GiB", "runtime.recompute"):
        assert part in message
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 6
