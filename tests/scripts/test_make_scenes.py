"""scripts/make_scenes.py: writes a data set that loads, once, and leaves nothing half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.coco import CocoDetection
from datasets.transforms import Normalize
from scripts import make_scenes

OPTIONS = ["--train", "4", "--val", "2", "--size", "64", "--max-count", "12", "--workers", "1"]


def _open(out: Path, split: str) -> CocoDetection:
    return CocoDetection(
        annotations=out / "annotations" / f"{split}.json",
        images_root=out / split,
        transforms=Normalize(mean=(0, 0, 0), std=(1, 1, 1)),
        training=False,
    )


def test_writes_a_data_set_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    assert make_scenes.main(["--out", str(out), *OPTIONS]) == 0
    assert "objects per image" in capsys.readouterr().out
    for split, length in (("train", 4), ("val", 2)):
        dataset = _open(out, split)
        dataset.check_files()
        assert len(dataset) == length
        assert max(len(dataset[i][1].labels) for i in range(length)) <= 12
    assert (out / "train" / "000000.png").read_bytes() != (out / "val" / "000000.png").read_bytes()

    before = (out / "train" / "000000.png").stat().st_mtime_ns
    assert make_scenes.main(["--out", str(out), *OPTIONS]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "train" / "000000.png").stat().st_mtime_ns == before
    recipe = json.loads((out / "manifest.json").read_text())["recipe"]
    (out / "manifest.json").unlink()
    (out / "recipe.json").write_text(json.dumps(recipe))  # as made before manifests had it
    assert make_scenes.main(["--out", str(out), *OPTIONS]) == 0
    assert "nothing to do" in capsys.readouterr().out

    assert make_scenes.main(["--out", str(out), *OPTIONS, "--seed", "1"]) == 3
    assert "--force" in capsys.readouterr().err
    assert make_scenes.main(["--out", str(out), *OPTIONS, "--seed", "1", "--force"]) == 0
    assert json.loads((out / "manifest.json").read_text())["recipe"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_foreign_folder_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert make_scenes.main(["--out", str(tmp_path), *OPTIONS, "--force"]) == 3
    assert "was not made by this script" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_scenes, "make_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        make_scenes.main(["--out", str(tmp_path / "scenes"), *OPTIONS])
    assert list(tmp_path.iterdir()) == []
