"""SODA-A's files per image and SODA-D's files per split -> COCO."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.converters.trees import contents, draw, run, write

BOX = [10, 12, 20, 12, 20, 26, 10, 26]


def polygon(number: int, label: int, poly: list[float], key: str = "category_id") -> dict[str, Any]:
    return {"id": number, key: label, "poly": poly, "area": 1.0, "image_id": 3}


def soda_a(root: Path) -> None:
    """Five corners, a corner outside, the class ignore, an empty file; beside it, files without ignore, and tiles."""
    objects = [
        polygon(0, 2, BOX),
        polygon(1, 8, [30, 30, 40, 28, 50, 30, 48, 40, 30, 44]),
        polygon(2, 0, [70, 50, 90, 50, 90, 58, 70, 58]),
    ]
    for split in ("train", "val"):
        folder = root / "rawData" / split
        for name in ("00003", "00004"):
            draw(folder / "Images" / f"{name}.jpg")
        write(folder / "Annotations" / "00003.json", {"annotations": objects})
        ignored = [*objects, polygon(3, 9, [0, 0, 8, 0, 8, 8, 0, 8])]
        write(folder / "AnnsWithIgnore" / "00003.json", {"annotations": ignored})
        write(folder / "AnnsWithIgnore" / "00004.json", "")
        draw(root / "divData" / split / "Images" / "00003__800__0___0.jpg")
        tile = {"annotations": [polygon(0, 2, BOX, "cat_id") | {"trunc": 0}]}
        write(root / "divData" / split / "Annotations" / "00003__800__0___0.json", tile)


def soda_a_flat(root: Path) -> None:
    """Annotations/{train,test} and one folder of images; categories in the file."""
    categories = [{"id": 0, "name": "airplane"}, {"id": 9, "name": "ignore"}]
    for split, name in (("train", "00001"), ("train", "00002"), ("test", "00009")):
        draw(root / "Images" / f"{name}.jpg")
        content = {"annotations": [polygon(0, 0, BOX)], "categories": categories, "images": {"id": 1}}
        write(root / "Annotations" / split / f"{name}.json", content)


def soda_d(root: Path) -> None:
    """COCO-like, ids from 1, ignore as a category."""
    categories = [{"id": 1, "name": "people"}, {"id": 2, "name": "rider"}, {"id": 10, "name": "ignore"}]
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{split}_{i}.jpg", "width": 80, "height": 60} for i in (1, 2)]
        for image in images:
            draw(root / "Images" / str(image["file_name"]))
        boxes = [(1, [10, 12, 10, 14], 1), (2, [30, 30, 5, 0], 1), (10, [0, 0, 8, 8], 1), (1, [1, 1, 5, 5], 99)]
        objects = [{"id": i, "category_id": c, "bbox": b, "image_id": m} for i, (c, b, m) in enumerate(boxes)]
        content = {"images": images, "annotations": objects, "categories": categories}
        write(root / "Annotations" / f"{split}.json", content)


def test_polygons(tmp_path: Path) -> None:
    soda_a(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    ignored = [(name, [0, 0, 8, 8], 1) for name in ("airplane", "small-vehicle", "windmill")]
    assert contents(tmp_path / "out", "train") == {
        "00003.jpg": [
            ("small-vehicle", [10, 12, 10, 14], 0),
            ("windmill", [30, 28, 20, 16], 0),
            ("airplane", [70, 50, 10, 8], 0),
            *ignored,
        ],
        "00004.jpg": [],
    }
    assert manifest["splits"]["val"]["objects"] == 3
    assert manifest["fixed_or_dropped"] == {
        "box_clipped": 2,
        "empty_label_file": 2,
        "file_of_another_form_of_the_same_images": 4,
        "ignored_region": 2,
        "polygon_of_more_than_four_corners": 2,
    }


def test_one_folder_of_images(tmp_path: Path) -> None:
    soda_a_flat(tmp_path / "any")
    run("auto", tmp_path / "any", tmp_path / "out")
    box = [("airplane", [10, 12, 10, 14], 0)]
    assert contents(tmp_path / "out", "train") == {"00001.jpg": box, "00002.jpg": box}
    assert contents(tmp_path / "out", "test") == {"00009.jpg": box}


def test_files_per_split(tmp_path: Path) -> None:
    soda_d(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    assert contents(tmp_path / "out", "val") == {
        "val_1.jpg": [("people", [10, 12, 10, 14], 0), ("people", [0, 0, 8, 8], 1), ("rider", [0, 0, 8, 8], 1)],
        "val_2.jpg": [],
    }
    assert manifest["fixed_or_dropped"] == {
        "annotation_of_unknown_image": 2,
        "box_without_area": 2,
        "ignored_region": 2,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: write(r / "Annotations/train/00001.json", '{"annotations": [{"poly": [1'), "00001.json: cannot be"),
        (lambda r: (r / "Images/00001.jpg").unlink(), r"00001\.json: 00001\.jpg: no such image below"),
        (
            lambda r: write(r / "Annotations/train/00001.json", {"annotations": [polygon(5, 12, BOX)]}),
            r"00001\.json: annotation 5: category 12 is not one of 0 airplane, .* 9 ignore",
        ),
        (
            lambda r: write(r / "Annotations/train/00001.json", {"annotations": [polygon(5, 1, BOX[:7])]}),
            r"00001\.json: annotation 5: neither poly with pairs of numbers",
        ),
    ],
)
def test_faults(
    change: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soda_a_flat(tmp_path / "any")
    change(tmp_path / "any")
    run("soda", tmp_path / "any", tmp_path / "out", code=3)
    assert re.search(message, capsys.readouterr().err)
