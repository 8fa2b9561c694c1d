"""scripts/prepare_neon_trees.py without a network: tiling, boxes, and refusals; a made-up wheel."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.coco import CocoDetection
from datasets.transforms import Normalize
from scripts import prepare_neon_trees as script
from scripts.converters import neon_trees


@pytest.mark.parametrize(("length", "tile", "overlap"), [(920, 256, 32), (500, 256, 32), (257, 256, 0), (100, 256, 32)])
def test_tiles_cover_the_image(length: int, tile: int, overlap: int) -> None:
    starts = neon_trees.tile_starts(length, tile=tile, overlap=overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - tile, 0)
    assert all(a < b <= a + tile - overlap for a, b in pairwise(starts))


def test_a_box_stays_when_half_of_it_does() -> None:
    boxes = np.array([[90.0, 10, 110, 20], [91.0, 10, 111, 20], [89.0, 10, 109, 20], [50.0, 50, 60, 60]])
    inside, kept = neon_trees.boxes_in_window(boxes, (0, 0, 100, 100))
    assert kept.tolist() == [True, False, True, True]
    assert inside.tolist() == [[90, 10, 100, 20], [89, 10, 100, 20], [50, 50, 60, 60]]
    assert neon_trees.boxes_in_window(boxes, (40, 40, 100, 100))[0].tolist() == [[10, 10, 20, 20]]


def _fake_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(neon_trees.LICENSE, "MIT License")
        for name in neon_trees.SPLITS.values():
            picture = io.BytesIO()
            Image.new("RGB", (300, 200), (90, 110, 70)).save(picture, format="PNG")
            archive.writestr(f"deepforest/data/{name}.png", picture.getvalue())
            box = "<bndbox><xmin>{}</xmin><ymin>20</ymin><xmax>{}</xmax><ymax>50</ymax></bndbox>"
            objects = "".join(f"<object>{box.format(x, x + 30)}</object>" for x in range(0, 270, 40))
            archive.writestr(f"deepforest/data/{name}.xml", f"<annotation>{objects}</annotation>")


def test_writes_tiles_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, out = tmp_path / "fake.whl", tmp_path / "trees"
    _fake_wheel(wheel)
    monkeypatch.setattr(neon_trees, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    options = ["--out", str(out), "--wheel", str(wheel), "--scale", "0.5", "--tile", "64", "--overlap", "8"]
    assert script.main(options) == 0
    dataset = CocoDetection(
        annotations=out / "annotations" / "test.json",
        images_root=out / "test",
        transforms=Normalize(mean=(0, 0, 0), std=(1, 1, 1)),
        training=True,
    )
    dataset.check_files()
    assert dataset.categories == ("tree",)
    assert len(dataset) == 3 * 2
    assert dataset[0][1].size == (64, 64)
    assert dataset.statistics().num_objects >= 7
    assert "MIT License" in (out / "NOTICE").read_text()
    assert "CC0" in (out / "NOTICE").read_text()
    assert script.main(options) == 0  # nothing to do


def test_another_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "fake.whl"
    _fake_wheel(wheel)
    assert script.main(["--out", str(tmp_path / "trees"), "--wheel", str(wheel)]) == 3
    assert "SHA-256 mismatch" in capsys.readouterr().err
    assert script.main(["--out", str(tmp_path / "trees"), "--wheel", str(tmp_path / "none.whl")]) == 3
    assert "check --wheel" in capsys.readouterr().err
    assert not (tmp_path / "trees").exists()


def test_no_index_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", fail)
    assert script.main(["--out", str(tmp_path / "trees")]) == 3
    message = capsys.readouterr().err
    assert "No matching distribution found" in message
    assert "--wheel FILE" in message
