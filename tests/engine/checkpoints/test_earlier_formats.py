"""A checkpoint of format 3, written by the code of that time inside an epoch, loads, evaluates and resumes.

tests/data/checkpoints/format3.pth is last.pth of the run that `train` repeats here, stopped by SIGTERM after its third
step; format3.yaml is the run's config.yaml.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from engine.checkpoints.sealed_file import read_archive, write_archive
from tests.end_to_end.test_interruption import state_of
from tests.support.hooks import stop_at_step
from tests.support.tiny_run import write_experiment

STORED = Path(__file__).parents[2] / "data" / "checkpoints" / "format3.pth"
STOP = 3
"""Optimiser steps after which the stored run stopped: of two batches each, two to an epoch"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stored run's data, which hold an unreadable image, and the runs `whole` and `stopped`."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_experiment(Path(), train=[3, 0, 0, 5, 2, 1, 4], val=[2, 1])
        Path("data/train/3.png").write_bytes(b"no image")
        assert train("whole") == 0
        stop_at_step(STOP, patch)
        assert train("stopped") == 75
    return folder


def train(folder: str) -> int:
    return main.main(["--config", str(STORED.with_suffix(".yaml")), "--set", f"runtime.output_dir={folder}"])


def read(folder: str) -> Checkpoint:
    return load_checkpoint(Path(folder, "last.pth"))


def differences(found: Checkpoint, expected: Checkpoint) -> list[str]:
    ours, theirs = state_of(found), state_of(expected)
    assert ours.keys() == theirs.keys()
    return [name for name, value in theirs.items() if not torch.equal(value, ours[name])]


def test_it_evaluates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main.main(["--eval", "--resume", str(STORED), "--set", "runtime.output_dir=results"]) == 0
    assert "2 images, 3 objects" in Path("results/evaluation.txt").read_text()


def test_it_resumes_to_the_bits_of_an_undisturbed_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and moments are those of this machine, whose arithmetic may differ from that of the stored file's in the
    last bits; layout, random states and all counts are the file's."""
    monkeypatch.chdir(place)
    content, here = read_archive(STORED), read("stopped")
    assert content["format"] == 3
    assert all(torch.allclose(content["model"][name], value, atol=1e-2) for name, value in here.model.items())
    content |= {"model": here.model, "average": here.average, "optimizer": here.optimizer, "meter": here.meter}
    Path("resumed").mkdir()
    write_archive(Path("resumed/last.pth"), content)
    shutil.copy("resumed/last.pth", "resumed/best.pth")
    assert main.main(["--resume", "resumed/last.pth"]) == 0
    found, expected = read("resumed"), read("whole")
    assert differences(found, expected) == []
    assert replace(found.progress, seconds=0.0) == replace(expected.progress, seconds=0.0)
    assert expected.progress.replaced > 0


def test_the_stored_file_itself_resumes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("as_it_is").mkdir()
    shutil.copy(STORED, "as_it_is/last.pth")
    shutil.copy(STORED, "as_it_is/best.pth")
    assert main.main(["--resume", "as_it_is/last.pth"]) == 0
    found, expected = read("as_it_is"), read("whole")
    assert differences(found, expected) == [] or differences(load_checkpoint(STORED), read("stopped")) != []
    assert all(torch.allclose(found.model[name], value, atol=1e-2) for name, value in expected.model.items())
