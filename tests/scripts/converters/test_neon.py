"""NEON tree crowns as published -> COCO."""

import re
from pathlib import Path

import pytest

from scripts.converters import neon_trees
from tests.scripts.converters.test_dior import voc_object
from tests.scripts.converters.trees import contents, draw, run, write


def evaluation(root: Path) -> None:
    """Other sensors, an image without a label, labels that are not `Tree`, an annotation without its image."""
    for folder, name in (("training", "MLBS_1"), ("training", "SJER_2"), ("evaluation", "OSBS_3")):
        draw(root / folder / "RGB" / f"{name}.tif")
        draw(root / folder / "CHM" / f"{name}_CHM.tif")
        label = f"<annotation>{voc_object('Tree')}{voc_object('Dead', '5 5 5 9')}</annotation>"
        write(root / "annotations" / f"{name}.xml", label)
    draw(root / "evaluation" / "RGB" / "OSBS_4.tif")
    write(root / "annotations" / "LOST_5.xml", "<annotation/>")


def wheel(root: Path) -> None:
    """Unpacked, with a scene that belongs to neither split."""
    for name in (*neon_trees.SPLITS.values(), "OSBS_029"):
        draw(root / "deepforest" / "data" / f"{name}.png")
        write(root / "deepforest" / "data" / f"{name}.xml", f"<annotation>{voc_object('Tree')}</annotation>")


def test_the_evaluation_set(tmp_path: Path) -> None:
    evaluation(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    box = [("tree", [11, 13, 9, 13], 0)]
    assert contents(tmp_path / "out", "train") == {"MLBS_1.tif": box, "SJER_2.tif": box}
    assert contents(tmp_path / "out", "test") == {"OSBS_3.tif": box}
    assert manifest["fixed_or_dropped"] == {
        "annotation_without_image": 1,
        "box_without_area": 3,
        "image_of_another_sensor_or_scene": 3,
        "image_without_annotation": 1,
    }


def test_the_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    assert {split: each["images"] for split, each in manifest["splits"].items()} == {"train": 1, "test": 1}
    write(tmp_path / "packed" / "deepforest-2.1.0-py3-none-any.whl", "PK")
    run("auto", tmp_path / "packed", tmp_path / "other", code=3)
    assert re.search(r"is packed; unpack it: python -m zipfile -e deepforest", capsys.readouterr().err)
