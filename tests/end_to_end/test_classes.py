"""The number of classes, from the data, and heads that start from a checkpoint with other classes."""

import json
from pathlib import Path

import pytest

import main
from configs.loader import parse_config
from engine.checkpoints.checkpoint import load_checkpoint
from scripts import benchmark
from tests.support.tiny_run import write_experiment

FROM_DATA = "model.num_classes=null"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=[3, 2], val=[2])


def start(config: Path, output: Path, *settings: str, arguments: tuple[str, ...] = ()) -> int:
    chosen = [f"runtime.output_dir={output}", "optim.epochs=1", *settings]
    return main.main(["--config", str(config), *arguments, "--set", *chosen])


def rename_classes(experiment: Path, *names: str) -> None:
    """Give both annotation files these categories, with ids from 1 on."""
    for split in ("train", "val"):
        file = experiment.parent / "data" / f"{split}.json"
        document = json.loads(file.read_text())
        document["categories"] = [{"id": 1 + k, "name": name} for k, name in enumerate(names)]
        file.write_text(json.dumps(document))


def test_the_number_of_classes_comes_from_the_data_and_is_kept_in_the_checkpoint(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert start(experiment, output, FROM_DATA) == 0
    assert "  num_classes: 2\n" in (output / "config.yaml").read_text()
    assert parse_config(load_checkpoint(output / "last.pth").config, "last.pth").model.num_classes == 2
    assert main.main(["--eval", "--resume", str(output / "last.pth")]) == 0
    rename_classes(experiment, "square", "other", "third")
    capsys.readouterr()
    assert start(experiment, output, FROM_DATA, "optim.epochs=3", arguments=("--resume", "auto")) == 3
    said = capsys.readouterr().err
    assert "3 categories (square, other, third)" in said
    assert "num_classes is 2" in said


def test_without_annotations_the_number_of_classes_must_be_given(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["model", "--config", str(experiment), "--set", FROM_DATA]) == 2
    assert "model.num_classes: null" in capsys.readouterr().err
    (experiment.parent / "data").rename(tmp_path / "elsewhere")
    assert start(experiment, tmp_path / "run", FROM_DATA, arguments=("--check",)) == 3
    assert "no such data root" in capsys.readouterr().out
