"""Files of other projects load without their classes; whatever is not on the fixed list is refused, unexecuted."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.checkpoint import CheckpointError
from engine.checkpoints.foreign import read_foreign_checkpoint
from tests.support.foreign_files import save_like_mmengine, save_with_classes, stand_in_class

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_a_file_like_mmengines_loads_without_mmengine(tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    save_like_mmengine(path, STATE, ["ship", "vehicle"])
    assert not any(name.startswith("mmengine") for name in sys.modules)
    with pytest.raises(Exception, match=r"mmengine|numpy|getattr"):
        torch.load(path, weights_only=True)
    found = read_foreign_checkpoint(path)
    assert same(found.state)
    assert found.categories == ["ship", "vehicle"]
    assert not any(name.startswith("mmengine") for name in sys.modules)
    with pytest.raises(Exception, match="mmengine"):  # the stand-ins are gone again
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "mmengine.config.config.Config",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtypes.Float64DType",
    ],
)
def test_each_listed_name_is_inert(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pth"
    cls = stand_in_class(name)
    save_with_classes(path, lambda: {"state_dict": STATE, "meta": cls()}, cls)
    assert same(read_foreign_checkpoint(path).state)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (STATE, "at the top"),
        ({"state_dict": STATE, "epoch": 3}, "under state_dict"),
        ({"model": STATE, "epoch": 3}, "under model"),
        ({"params": STATE}, "under params"),
        ({"ema": {"module": STATE, "updates": 3}, "epoch": 3}, "under ema.module"),
        ({"ema": {"a": torch.ones(1)}, "model": STATE, "ema_model": {}}, "under model; not ema, ema_model"),
        ({"model": {"state_dict": STATE}, "state": 1}, "under model.state_dict"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_where_the_weights_are(tmp_path: Path, content: dict[str, Any], place: str, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_foreign_checkpoint(path)
    assert same(found.state)
    assert found.categories is None
    assert found.place == place


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > executed.txt",)


class Evaluates:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('executed.txt', 'w')",)


@pytest.mark.parametrize(("payload", "name"), [(RunsCode(), "posix.system"), (Evaluates(), "eval")])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: object, name: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "meta": payload}, "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"x\.pth: names {name}, .*refused"):
        read_foreign_checkpoint(Path("x.pth"))
    assert not Path("executed.txt").exists()


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    cls = stand_in_class("mmengine.logging.history_buffer.Other")
    save_with_classes(path, lambda: {"state_dict": STATE, "meta": cls()}, cls)
    with pytest.raises(CheckpointError, match=r"mmengine\.logging\.history_buffer\.Other"):
        read_foreign_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list"),
        ({"epoch": 3}, r"no tensors under state_dict, model, .* or at the top; it holds \['epoch'\]"),
        ({"state_dict": {}}, "no tensors"),
        ({"state_dict": {"a": 1.0}}, "no tensors"),
        ({"model": {"model": {"model": {"model": STATE}}}}, r"no tensors under .*; it holds \['model'\]"),
        ({"format": 3, "model": STATE}, "already a checkpoint of this project"),
        (
            {"b": torch.tensor([1.0, torch.nan]), "c": torch.ones(1)},
            "NaN or infinite values in 1 of 2 tensors; first: b",
        ),
        ({"model": {"b": torch.tensor([torch.inf])}}, "first: b"),
    ],
)
def test_useless_content(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*{message}"):
        read_foreign_checkpoint(tmp_path / "x.pth")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.rand(100, 100)}}, path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content in (good[: len(good) // 2], bytes(flipped), b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.pth: (not readable|damaged)"):
            read_foreign_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_foreign_checkpoint(tmp_path / "missing.pth")
