"""Run logs: files, silence of other processes, rewinding on resume."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.logger import RunLogger, metrics_table, progress

ROOT = Path(__file__).parents[2]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def record_steps(folder: Path, steps: list[int], value: float, rewind: int | None = None) -> None:
    with RunLogger(folder, is_main=True) as logger:
        if rewind is not None:
            logger.rewind(rewind)
        for step in steps:
            logger.record("train", step, {"loss": value})


def test_the_records_as_a_table(tmp_path: Path) -> None:
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.record("train", 1, {"loss": 2.5, "lr": math.nan})
        assert not (tmp_path / "metrics.csv").exists()
        logger.record("evaluation", 1, {"mAP": 0.25, 'a "name", quoted': 1})
        assert (tmp_path / "metrics.csv").is_file()
        logger.record("train", 2, {"loss": 1.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # of a killed run
    assert metrics_table(tmp_path / "metrics.jsonl") == (tmp_path / "metrics.csv").read_text()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    empty = {"loss": "", "lr": "", "mAP": "", 'a "name", quoted': ""}
    assert rows == [
        {"kind": "train", "step": "1", **empty, "loss": "2.5"},
        {"kind": "evaluation", "step": "1", **empty, "mAP": "0.25", 'a "name", quoted': "1.0"},
        {"kind": "train", "step": "2", **empty, "loss": "1.5"},
    ]


def test_records_are_readable_while_the_run_goes_on(tmp_path):
    with RunLogger(tmp_path / "a" / "run", is_main=True) as logger:
        logger.record("train", 50, {"loss": 1.5, "worst": float("nan"), "best": float("-inf")})
        logger.record("val", np.int64(100), {"mAP": np.float32(0.25)})
        assert lines(tmp_path / "a" / "run") == [
            {"kind": "train", "step": 50, "loss": 1.5, "worst": None, "best": None},
            {"kind": "val", "step": 100, "mAP": 0.25},
        ]
    assert events(tmp_path / "a" / "run").Scalars("train/loss")[0].value == 1.5


def test_values_cannot_hide_the_kind_or_the_step(tmp_path):
    with RunLogger(tmp_path, is_main=True) as logger, pytest.raises(ValueError, match="cannot be named 'step'"):
        logger.record("train", 1, {"step": 2.0})


def full_disk() -> TextIO:
    return open("/dev/full", "w")


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "tensorboard"])
def test_an_error_of_writing_names_its_file(tmp_path, monkeypatch, name):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    logger = RunLogger(tmp_path, is_main=True)
    logger.record("train", 1, {"loss": 1.0})
    if name == "tensorboard":
        monkeypatch.setattr(logger._summary_writer(), "add_scalar", fail)
        write = partial(logger.record, "train", 2, {"loss": 1.0})
    elif name == "metrics.jsonl":
        logger._metrics = full_disk()
        write = partial(logger.record, "train", 2, {"loss": 1.0})
    else:
        logger._log = full_disk()
        write = partial(logger.say, "text")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.filename == str(tmp_path / name)


def test_text_that_is_no_unicode_is_escaped_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.say("image \udcff.png")
    assert r"image \udcff.png" in (tmp_path / "log.txt").read_text()


def test_lines_go_to_stdout_and_to_the_file(tmp_path, capsys):
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.say("first")
        logger.say("table\n  row")
    text = (tmp_path / "log.txt").read_text()
    assert re.fullmatch(r"\[0:00:\d\d\] first\n\[0:00:\d\d\] table\n  row\n", text)
    assert capsys.readouterr().out == text


def test_other_processes_do_nothing(tmp_path, capsys):
    with RunLogger(tmp_path / "run", is_main=False) as logger:
        logger.rewind(3)
        logger.say("hello")
        logger.record("train", 1, {"loss": 1.0})
        logger.image("gallery", 1, np.zeros((4, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_other_processes_do_not_load_tensorboard(tmp_path):
    code = (
        "import sys; from pathlib import Path; from engine.logger import RunLogger\n"
        f"logger = RunLogger(Path({str(tmp_path)!r}), is_main=False); logger.record('train', 1, {{'loss': 1.0}})\n"
        "sys.exit(any(name.startswith('tensorboard') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    record_steps(tmp_path, [10, 20, 30], 1.0)
    record_steps(tmp_path, [30, 40], 2.0, rewind=20)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1), (20, 1), (30, 2), (40, 2)]
    scalars = events(tmp_path).Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == [(10, 1), (20, 1), (30, 2), (40, 2)]
    assert "1 record after step 20 dropped" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_a_half_written_last_line_is_dropped(tmp_path):
    record_steps(tmp_path, [10, 20], 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    record_steps(tmp_path, [30], 2.0, rewind=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]


def test_minus_one_starts_anew_and_an_end_beyond_the_last_record_keeps_all(tmp_path):
    record_steps(tmp_path, [0, 10], 1.0)
    record_steps(tmp_path, [], 0.0, rewind=500)
    assert [line["step"] for line in lines(tmp_path)] == [0, 10]
    record_steps(tmp_path, [5], 2.0, rewind=-1)
    assert [line["step"] for line in lines(tmp_path)] == [5]


def test_a_broken_line_is_reported_and_the_file_left_alone(tmp_path):
    text = '{"kind": "train", "step": 1}\n{"kind": "train"}\n{"kind": "train", "step": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with RunLogger(tmp_path, is_main=True) as logger, pytest.raises(ValueError, match=r"metrics.jsonl:2: not a record"):
        logger.rewind(1)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_rewinding_after_a_record_is_refused(tmp_path):
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.record("train", 1, {"loss": 1.0})
        with pytest.raises(RuntimeError, match="before the first one"):
            logger.rewind(0)


def test_images_keep_their_colours(tmp_path):
    red = np.zeros((6, 4, 3), np.uint8)
    red[..., 0] = 200
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.image("array", 1, red)
        logger.image("pil", 2, Image.fromarray(red))
        with pytest.raises(ValueError, match="expected uint8"):
            logger.image("float", 3, red / 255)
    found = events(tmp_path)
    for tag, step in (("array", 1), ("pil", 2)):
        (event,) = found.Images(tag)
        assert (event.step, event.width, event.height) == (step, 4, 6)
        (tmp_path / "image.png").write_bytes(event.encoded_image_string)
        assert (np.asarray(Image.open(tmp_path / "image.png")) == red).all()


def test_after_closing_nothing_is_written(tmp_path):
    logger = RunLogger(tmp_path, is_main=True)
    logger.close()
    logger.close()
    logger.say("late")
    logger.record("train", 1, {"loss": 1.0})
    assert (tmp_path / "log.txt").read_text() == ""
    assert not (tmp_path / "metrics.jsonl").exists()


def test_progress_is_the_plain_iterable_without_a_terminal(monkeypatch, capsys):
    items = [1, 2, 3]
    assert progress(items, total=3, description="x", enabled=True) is items
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress(items, total=3, description="x", enabled=False) is items
    assert list(progress(items, total=3, description="epoch 1", enabled=True)) == items
    assert "epoch 1" in capsys.readouterr().err


def test_what_is_yet_to_come_at_the_step_itself_is_forgotten_too(tmp_path):
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.record("train", 10, {"loss": 1.0})
        logger.record("evaluation", 10, {"mAP": 0.5})
        logger.record("train", 11, {"loss": 1.0})
    with RunLogger(tmp_path, is_main=True) as logger:
        logger.rewind(10, undone="evaluation")
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [("train", 10)]
