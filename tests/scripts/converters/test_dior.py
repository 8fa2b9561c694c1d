"""DIOR's folders -> COCO."""

import re
from pathlib import Path

import pytest

from tests.scripts.converters.trees import contents, draw, run, write


def voc_object(name: str, box: str = "11 13 20 26") -> str:
    fields = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in fields)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"


def tree(root: Path) -> None:
    """Class names in two spellings, oriented boxes beside, images of both folders, lists."""
    for number, folder in (("00001", "trainval"), ("00002", "trainval"), ("11726", "test")):
        draw(root / f"JPEGImages-{folder}" / f"{number}.jpg")
        objects = voc_object("Expressway-toll-station" if number == "00001" else "Expressway-Toll-station")
        label = f"<annotation>{objects}{voc_object('golffield', '1 1 80 60')}</annotation>"
        write(root / "Annotations" / "Horizontal Bounding Boxes" / f"{number}.xml", label)
        oriented = "<object><name>golffield</name><robndbox><x_left_top>1</x_left_top></robndbox></object>"
        write(
            root / "Annotations" / "Oriented Bounding Boxes" / f"{number}.xml", f"<annotation>{oriented}</annotation>"
        )
    for name, number in (("train", "00001"), ("val", "00002"), ("test", "11726"), ("trainval", "00001\n00002")):
        write(root / "ImageSets" / "Main" / f"{name}.txt", f"{number}\n")


def test_boxes_count_from_one(tmp_path: Path) -> None:
    tree(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    expected = [[10, 12, 10, 14], [0, 0, 80, 60]]
    for split, name in (("train", "00001"), ("val", "00002"), ("test", "11726")):
        found = contents(tmp_path / "out", split)
        assert {key: [box for _, box, _ in boxes] for key, boxes in found.items()} == {f"{name}.jpg": expected}
    assert len(manifest["classes"]) == 2
    assert manifest["fixed_or_dropped"] == {"class_names_that_differ_in_case": 1}
    assert manifest["options"]["voc_origin"] == "1"
    run("dior", tmp_path / "any", tmp_path / "from 0", "--voc-origin", 0)
    assert contents(tmp_path / "from 0", "test")["11726.jpg"][0][1] == [11, 13, 9, 13]


def test_oriented_boxes_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "any")
    for path in (tmp_path / "any" / "Annotations" / "Horizontal Bounding Boxes").iterdir():
        path.unlink()
    run("dior", tmp_path / "any", tmp_path / "out", code=3)
    assert re.search("has oriented boxes only; fetch DIOR's Horizontal", capsys.readouterr().err)
