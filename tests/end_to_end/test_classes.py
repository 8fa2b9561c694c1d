"""The number of classes, from the data, and heads that start from a checkpoint with other classes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
from configs.loader import parse_config
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from engine.checkpoints.key_mapping import CLASS_TENSORS
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


def test_other_classes_start_from_those_of_the_same_name(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(experiment, tmp_path / "first") == 0
    rename_classes(experiment, "new", "square", "third")
    source = tmp_path / "first" / "last.pth"
    settings = [FROM_DATA, f"init_from={source}", "optim.lr=1e-12"]
    assert start(experiment, tmp_path / "refused", *settings) == 4
    assert "reset_head: true (or by_name)" in capsys.readouterr().err
    assert start(experiment, tmp_path / "second", *settings, "reset_head=by_name") == 0
    line = "classes of the same name keep their rows: square; these start fresh: new, third\n"
    assert line in (tmp_path / "second" / "log.txt").read_text()
    assert line in capsys.readouterr().out
    first, second = (load_checkpoint(tmp_path / name / "last.pth") for name in ("first", "second"))
    assert second.categories == ["new", "square", "third"]
    heads = [name for name in first.model if name.startswith(CLASS_TENSORS)]
    assert len(heads) == 2 * 2 + 2 + 1  # of two decoder layers, of the proposals, and the label table
    for name in heads:
        assert torch.allclose(first.model[name][0], second.model[name][1], atol=1e-6), name
        if name.startswith("decoder"):  # "no object"
            assert torch.allclose(first.model[name][2], second.model[name][3], atol=1e-6), name
    assert torch.allclose(first.model["decoder.norm.weight"], second.model["decoder.norm.weight"], atol=1e-6)
    save_checkpoint(source, replace(first, categories=[]))
    assert start(experiment, tmp_path / "third", *settings, "reset_head=by_name", arguments=("--check",)) == 4
    assert "holds no class names" in capsys.readouterr().out
