from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    Progress,
    load_checkpoint,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from engine.checkpoints.sealed_file import SEAL_LENGTH, DamagedError, write_archive

SAVED = Progress(epoch=2, batch=1, step=20, replaced=4, seconds=1.5, best_score=0.25)
CHECKPOINT = Checkpoint(
    model={"weight": torch.arange(6.0).view(2, 3)},
    config="model: {}\n",
    categories=["a", "b"],
    progress=SAVED,
    batches=3,
    average={"weight": torch.zeros(2, 3)},
    optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    scaler={},
    random_states=[torch.arange(5, dtype=torch.uint8)],
    category_ids=[3, 7],
    resize_factor=0.5,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, CHECKPOINT)
    found = load_checkpoint(path)
    assert torch.equal(found.model["weight"], CHECKPOINT.model["weight"])
    assert torch.equal(found.random_states[0], CHECKPOINT.random_states[0])
    assert found.optimizer["param_groups"] == CHECKPOINT.optimizer["param_groups"]
    assert (found.config, found.categories, found.progress.epoch, found.progress.step) == (
        "model: {}\n",
        ["a", "b"],
        2,
        20,
    )
    assert (found.category_ids, found.resize_factor) == ([3, 7], 0.5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]


SINCE_FORMAT_2 = ("batch", "batches")
SINCE_FORMAT_3 = ("average", "meter", "data", "seconds", "skipped", "skipped_in_row", "replaced")
SINCE_FORMAT_5 = ("category_ids", "resize_factor")


def content_of(format: int) -> dict[str, Any]:
    """CHECKPOINT as the code of that time wrote it."""
    content = CHECKPOINT.content()
    del content["progress"]["stale"]
    progress = {} if format > 3 else content.pop("progress")
    content |= {**progress, "format": format}
    lacking = {1: SINCE_FORMAT_2 + SINCE_FORMAT_3, 2: SINCE_FORMAT_3}.get(format, ())
    lacking += SINCE_FORMAT_5 if format < 5 else ()
    return {name: value for name, value in content.items() if name not in lacking}


def write(path: Path, content: dict[str, Any]) -> None:
    """Files of format 1 have no seal."""
    torch.save(content, path) if content["format"] == 1 else write_archive(path, content)


@pytest.mark.parametrize("format", [1, 2, 3, 4, 5])
def test_files_of_earlier_formats_are_upgraded(tmp_path: Path, format: int) -> None:
    path = tmp_path / "last.pth"
    write(path, content_of(format))
    found = load_checkpoint(path)
    assert torch.equal(found.model["weight"], CHECKPOINT.model["weight"])
    kept = 3 if format > 1 else 0  # format 1 was saved at the end of an epoch only
    expected = {
        1: Progress(epoch=2, step=20, best_score=0.25),
        2: replace(SAVED, replaced=0, seconds=0.0),
        3: SAVED,
        4: SAVED,
        5: SAVED,
    }
    assert (found.progress, found.batches) == (expected[format], kept)
    assert found.average.keys() == (CHECKPOINT.average.keys() if format >= 3 else set())
    known = (CHECKPOINT.category_ids, CHECKPOINT.resize_factor) if format >= 5 else ([], 0.0)
    assert (found.category_ids, found.resize_factor) == known
    save_checkpoint(path, found)
    assert load_checkpoint(path).progress == found.progress


@pytest.mark.parametrize("format", [1, 2, 3])
@pytest.mark.parametrize("name", ["step", "evaluated", "optimizer"])
def test_what_an_earlier_format_should_hold_is_not_made_up(tmp_path: Path, format: int, name: str) -> None:
    path = tmp_path / "last.pth"
    content = content_of(format)
    del content[name]
    write(path, content)
    with pytest.raises(CheckpointError, match=rf"last\.pth: incomplete checkpoint, without (progress\.)?{name}$"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"progress": {"epoch": 1}}, "incomplete checkpoint, without progress.batch, progress.step, progress.skipped"),
        ({"progress": vars(Progress()) | {"step": 1.5}}, "not written by this project: progress.step of another type"),
        ({"progress": vars(Progress()) | {"evaluated": 1}}, "progress.evaluated of another type"),
        ({"progress": [1, 2]}, "not written by this project: progress of another type"),
        ({"format": 7}, r"not a checkpoint of this project \(format 6\)"),
    ],
)
def test_progress_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "last.pth"
    write_archive(path, CHECKPOINT.content() | changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_failing_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, CHECKPOINT)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, replace(CHECKPOINT, progress=Progress(epoch=3)))
    assert load_checkpoint(path).progress.epoch == 2


@pytest.mark.parametrize("position", [0.3, 0.5, 0.9])
def test_every_damaged_byte_is_noticed(tmp_path: Path, position: float) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, replace(CHECKPOINT, model={"weight": torch.randn(200, 200)}))
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pth"):
        load_checkpoint(path)


def test_weights_must_fit_unless_reset() -> None:
    detector = nn.ModuleDict({"body": nn.Linear(2, 3), "content_queries": nn.Embedding(4, 2), "head": nn.Linear(3, 5)})
    state = {name: torch.full_like(value, 7.0) for name, value in detector.state_dict().items()}
    state |= {
        "head.weight": torch.zeros(2, 3),
        "head.bias": torch.zeros(2),
        "content_queries.weight": torch.zeros(3, 2),
    }
    del state["body.bias"]
    with pytest.raises(
        CheckpointError, match=r"1 tensors missing, 0 unexpected, 3 of another shape; first: body\.bias"
    ):
        load_weights(detector, state, source="x.pth")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    loaded = load_weights(detector, state, source="x.pth", starts=True, reset=True)
    assert set(loaded.initial) == {"body.bias", "head.weight", "head.bias"}
    assert loaded.tables == {"content_queries.weight": (3, 4)}
    after = detector.state_dict()
    assert (after["body.weight"] == 7).all()
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert (after["content_queries.weight"][:3] == 0).all()
    assert torch.equal(after["content_queries.weight"][3], before["content_queries.weight"][3])


@pytest.mark.parametrize("table", ["content_queries", "query_maker.content"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("rows", "line"),
    [(2, ".weight: all 2 trained rows, 3 more at initial values"), (9, ".weight: the first 5 of 9 trained rows")],
)
def test_a_training_starts_from_a_query_table_of_any_length(table: str, reset: bool, rows: int, line: str) -> None:
    parent, _, name = table.rpartition(".")
    holder = nn.ModuleDict({name: nn.Embedding(5, 2)})
    detector = nn.ModuleDict({"body": nn.Linear(2, 3), **({parent: holder} if parent else holder)})
    initial = detector.state_dict()[f"{table}.weight"].clone()
    trained = torch.arange(2.0 * rows, dtype=torch.float64).view(rows, 2)
    state = {**detector.state_dict(), f"{table}.weight": trained}
    with pytest.raises(CheckpointError, match=rf"0 unexpected, 1 of another shape; first: {table}.weight"):
        load_weights(detector, state, source="x.pth")  # evaluating and resuming require the same length
    loaded = load_weights(detector, state, source="x.pth", starts=True, reset=reset)
    assert (loaded.initial, loaded.describe_tables()) == ([], [table + line])
    after, both = detector.state_dict()[f"{table}.weight"], min(rows, 5)
    assert torch.equal(after[:both], trained[:both].float())
    assert torch.equal(after[both:], initial[both:])
    wider = {**state, f"{table}.weight": torch.zeros(rows, 3)}
    with pytest.raises(CheckpointError, match="1 of another shape"):
        load_weights(detector, wider, source="x.pth", starts=True)


def test_weights_of_something_else_are_refused_even_with_reset() -> None:
    with pytest.raises(CheckpointError, match="not one"):
        load_weights(nn.Linear(2, 2), {"other": torch.zeros(1)}, source="x.pth", starts=True, reset=True)


def test_random_state_is_restored() -> None:
    state = random_state(torch.device("cpu"))
    first = torch.rand(5)
    restore_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.rand(5), first)


def test_a_broken_seal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, CHECKPOINT)
    content = bytearray(path.read_bytes())
    for position in range(len(content) - SEAL_LENGTH, len(content)):
        content[position] ^= 1
        path.write_bytes(content)
        content[position] ^= 1
        with pytest.raises(DamagedError, match=r"last\.pth"):
            load_checkpoint(path)
    path.write_bytes(content)
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(DamagedError, match="checksum"):
        load_checkpoint(path)
