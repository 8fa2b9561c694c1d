"""xView's GeoJSON with boxes as text -> COCO."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.converters.trees import contents, draw, run, write


def feature(image: str, box: str, label: int) -> dict[str, Any]:
    """With a geometry in degrees, which contradicts the box."""
    fields = {"bounds_imcoords": box, "type_id": label, "image_id": image, "feature_id": 7}
    geometry = {"type": "Polygon", "coordinates": [[[-90.5, 29.9], [-90.5, 30.0], [-90.4, 30.0], [-90.5, 29.9]]]}
    return {"type": "Feature", "geometry": geometry, "properties": fields}


def tree(root: Path) -> None:
    """Ids with holes, two without a name, boxes that are degenerate or outside, a missing and a hidden image."""
    for name in ("5.tif", "100.tif", "389.tif"):
        draw(root / "train_images" / name, (300, 200))
    write(root / "train_images" / "._100.tif", "Mac OS X")
    draw(root / "val_images" / "7.tif")
    features = [
        feature("5.tif", "10,12,20,26", 18),
        feature("5.tif", "290,190,310,205", 94),
        feature("5.tif", "50,50,50,60", 18),
        feature("5.tif", "400,50,420,60", 18),
        feature("5.tif", "1,1,9,9", 75),
        feature("100.tif", "30,40,60,80", 11),
        feature("100.tif", "1,1,9,9", 82),
        feature("1395.tif", "10,10,20,20", 18),
    ]
    write(root / "xView_train.geojson", {"type": "FeatureCollection", "features": features})


def test_boxes_and_names(tmp_path: Path) -> None:
    tree(tmp_path / "xview")
    manifest = run("auto", tmp_path / "xview", tmp_path / "out", "--val-share", 0.34)
    found = contents(tmp_path / "out", "train") | contents(tmp_path / "out", "val")
    assert found == {
        "5.tif": [("Small Car", [10, 12, 10, 14], 0), ("Tower", [290, 190, 10, 10], 0)],
        "100.tif": [("Fixed-wing Aircraft", [30, 40, 30, 40], 0)],
        "389.tif": [],
    }
    assert manifest["classes"] == ["Fixed-wing Aircraft", "Small Car", "Tower"]
    assert manifest["fixed_or_dropped"] == {
        "box_clipped": 1,
        "box_outside_image": 1,
        "box_without_area": 1,
        "class_without_a_name": 2,
        "image_never_published": 1,
        "image_without_objects": 1,
    }


def test_tiles_and_chosen_classes(tmp_path: Path) -> None:
    tree(tmp_path / "xview")
    more = ("--tile", 150, "--overlap", 0, "--classes", "Tower,Fixed-wing Aircraft", "--empty-share", 0)
    manifest = run("xview", tmp_path / "xview", tmp_path / "out", *more)
    found = contents(tmp_path / "out", "train") | contents(tmp_path / "out", "val")
    kept = {name: objects for name, objects in found.items() if objects}
    assert kept == {
        "5__150_50.png": [("Tower", [140, 140, 10, 10], 0)],
        "100__0_0.png": [("Fixed-wing Aircraft", [30, 40, 30, 40], 0)],
        "100__0_50.png": [("Fixed-wing Aircraft", [30, 0, 30, 30], 0)],
    }
    assert manifest["fixed_or_dropped"]["class_not_chosen: Small Car"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("100.tif", "3,x,4,5", 18), r"features\[8\]: .*no image_id, type_id or bounds_imcoords of four numbers"),
        (("100.tif", "3,3,4,5", 14), r"features\[8\]: type_id 14 is not a class of xView"),
        (("6.tif", "3,3,4,5", 18), r"1 of 4 images are missing, 6\.tif first; fetch train_images\.tgz"),
    ],
)
def test_faults(change: tuple[str, str, int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    tree(tmp_path / "xview")
    path = tmp_path / "xview" / "xView_train.geojson"
    content = json.loads(path.read_text())
    write(path, content | {"features": [*content["features"], feature(*change)]})
    run("xview", tmp_path / "xview", tmp_path / "out", code=3)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
