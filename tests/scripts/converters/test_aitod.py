"""AI-TOD under its many names, and as its generator leaves it -> COCO."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.converters.aitod import NAMES
from tests.scripts.converters.trees import contents, draw, run, write

CATEGORIES = [{"supercategory": "none", "id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
MEMBERS = {"train": (0,), "val": (1,), "trainval": (0, 1), "test": (2,)}


def annotations(numbers: tuple[int, ...]) -> dict[str, Any]:
    """Ids from 0; an ignored object; one without area."""
    images = [{"id": i, "file_name": f"{1141 + n}__0_0.png", "width": 80, "height": 60} for i, n in enumerate(numbers)]
    boxes: list[dict[str, Any]] = [
        {"category_id": 6, "bbox": [10.5, 12, 10, 14]},
        {"category_id": 8, "bbox": [40, 40, 4, 4], "ignore": 1},
        {"category_id": 1, "bbox": [40, 40, 0, 4]},
    ]
    objects = [{"image_id": i, "iscrowd": 0} | box for i in range(len(numbers)) for box in boxes]
    return {"images": images, "annotations": [{"id": i} | o for i, o in enumerate(objects)], "categories": CATEGORIES}


def devkit(root: Path) -> None:
    """The tree after the generator: copies of the images, the halves that were merged, xView beside it."""
    for split, numbers in MEMBERS.items():
        write(root / "aitod" / "annotations" / f"aitod_{split}.json", annotations(numbers))
        write(root / "aitod" / "annotations" / f"aitod_wo_xview_{split}.json", annotations(()))
        write(root / "xview" / "annotations" / f"xview_{split}_small.json", annotations(numbers))
        for number in numbers:
            draw(root / "aitod" / "images" / split / f"{1141 + number}__0_0.png")
            draw(root / "xview" / "split" / "images" / f"{1141 + number}__0_0.png")
    feature = {"properties": {"bounds_imcoords": "1,2,3,4", "type_id": 18, "image_id": "1141.tif"}}
    write(root / "xview" / "xView_train.geojson", {"type": "FeatureCollection", "features": [feature]})


def generator(root: Path) -> None:
    """xview_aitod_sets/SPLIT/{images,labels}, without JSON."""
    for split, numbers in MEMBERS.items():
        for number in numbers:
            folder = root / "xview_aitod_sets" / split
            draw(folder / "images" / f"{1141 + number}__0_0.png")
            lines = "10.5000 12.0000 20.5000 26.0000 vehicle\n40.0 40.0 44.0 44.0 wind-mill\n"
            write(folder / "labels" / f"{1141 + number}__0_0.txt", lines)


def named(pattern: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in MEMBERS}


@pytest.mark.parametrize(
    "names",
    [
        named("aitodv2_{}"),
        named("aitod_{}_v1"),
        named("{}_v2"),
        {"trainval": "small_trainval_v2_3.0", "test": "small_test_v2_2.0"},
        {"trainval": "small_trainval_v1_1.0", "test": "aitod_test_v1_1.0"},
        {"train": "aitod_training_v1.0", "test": "aitod_test_v1.0"},
    ],
)
def test_names_of_its_files(names: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "any"
    for split, name in names.items():
        numbers = MEMBERS[split]
        write(root / "annotations" / f"{name}.json", annotations(numbers))
        for number in numbers:
            draw(root / ("trainval" if split != "test" else "test") / "images" / f"{1141 + number}__0_0.png")
    manifest = run("auto", root, tmp_path / "out")
    objects = [("vehicle", [10.5, 12, 10, 14], 0), ("wind-mill", [40, 40, 4, 4], 1)]
    trained = {f"{1141 + n}__0_0.png": objects for n in MEMBERS["trainval" if "trainval" in names else "train"]}
    assert contents(tmp_path / "out", "train") == trained
    assert contents(tmp_path / "out", "test") == {"1143__0_0.png": objects}
    assert manifest["classes"] == list(NAMES)
    assert manifest["fixed_or_dropped"].get("file_of_another_split_of_the_same_images", 0) == len(names) // 4 * 2


def test_the_generated_tree(tmp_path: Path) -> None:
    devkit(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    for split, folder in (("train", "trainval"), ("test", "test")):
        for link in (tmp_path / "out" / split).iterdir():
            assert link.resolve().parent == (tmp_path / "any" / "aitod" / "images" / folder).resolve()
    assert manifest["fixed_or_dropped"] == {
        "box_without_area": 3,
        "file_of_another_split_of_the_same_images": 2,
        "ignored_object": 3,
    }


def test_text_files(tmp_path: Path) -> None:
    generator(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out")
    assert contents(tmp_path / "out", "test") == {
        "1143__0_0.png": [("vehicle", [10.5, 12, 10, 14], 0), ("wind-mill", [40, 40, 4, 4], 0)]
    }
    assert manifest["splits"]["train"]["images"] == 2
    assert manifest["remarks"] == [
        "no JSON: the text files are only the part from xView; fetch AI-TOD's annotations for all of it"
    ]


def test_the_missing_half_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit(tmp_path / "any")
    for path in (tmp_path / "any").rglob("1141__0_0.png"):
        path.unlink()
    run("auto", tmp_path / "any", tmp_path / "out", code=3)
    message = (
        r"1 of 3 images are missing; 1 of them, such as 1141__0_0\.png, are those from xView: fetch its train_images"
    )
    assert re.search(message, capsys.readouterr().err)
    moved = tmp_path / "elsewhere"
    for number in range(3):
        draw(moved / f"{1141 + number}__0_0.png")
    assert run("aitod", tmp_path / "any", tmp_path / "out", "--images", moved)["splits"]["train"]["images"] == 2


def test_two_versions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit(tmp_path / "any")
    write(tmp_path / "any" / "aitod" / "annotations" / "aitodv2_test.json", annotations((2,)))
    run("auto", tmp_path / "any", tmp_path / "out", code=3)
    message = r"aitod_test\.json is of version 1, aitodv2_test\.json of version 2, of the same images"
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [*annotations((2,))["images"]] * 2}, r"images\[1\]: 1143__0_0\.png is listed twice"),
        ({"annotations": [{"id": 3, "image_id": 0, "bbox": [1, 2], "category_id": 1}]}, r"annotation 3: no bbox"),
        ({"categories": [{"name": "ship"}]}, r"categories: each needs a whole number"),
        ({"images": {}}, r"images, annotations and categories are not lists"),
    ],
)
def test_faults(change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit(tmp_path / "any")
    path = tmp_path / "any" / "aitod" / "annotations" / "aitod_test.json"
    path.write_text(json.dumps(annotations((2,)) | change))
    run("aitod", tmp_path / "any", tmp_path / "out", code=3)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_another_set_of_such_a_name_is_no_aitod(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "any" / "1141__0_0.png")
    draw(tmp_path / "any" / "1142__0_0.png")
    content = annotations((0, 1)) | {"categories": [{"id": i, "name": f"cell {i}"} for i in range(1, 9)]}
    write(tmp_path / "any" / "train_v2.json", content)
    run("auto", tmp_path / "any", tmp_path / "out")
    assert "taken for coco: train_v2.json is a COCO file" in capsys.readouterr().out
