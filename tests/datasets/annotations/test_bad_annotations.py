"""Every fault of an annotation file is one message: file, entry, field, value, remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets.coco import CocoDetection
from datasets.structures import DataError

Open = Callable[..., CocoDetection]
ANNOTATION_FAULTS = [
    ("unknown_image", {"image_id": 99}, ["image_id 99", "add that image"]),
    ("unknown_image", {"image_id": "33"}, ["image_id '33'"]),
    ("unknown_image", {"image_id": "a"}, ["image_id 'a'"]),
    ("unknown_image", {"image_id": True}, ["image_id True"]),
    ("unknown_image", {"image_id": [3]}, ["image_id [3]"]),
    ("unknown_category", {"category_id": 4}, ["category_id 4", "[2, 5, 90]"]),
    ("unknown_category", {"category_id": "vehicle"}, ["category_id 'vehicle'"]),
    ("box_length", {"bbox": [1, 2, 3]}, ["bbox [1, 2, 3]", "[x, y, width, height]"]),
    ("box_length", {"bbox": None}, ["bbox None"]),
    ("not_numeric", {"bbox": [1, 2, "3", 4]}, ["bbox [1, 2, '3', 4]", "no number"]),
    ("not_numeric", {"bbox": [1, 2, True, 4]}, ["bbox [1, 2, True, 4]"]),
    ("not_finite", {"bbox": [1, 2, float("nan"), 4]}, ["bbox [1, 2, nan, 4]", "NaN"]),
    ("not_finite", {"bbox": [1, 2, float("inf"), 4]}, ["bbox [1, 2, inf, 4]"]),
    ("not_finite", {"bbox": [1, 2, 10**400, 4]}, ["bbox [1, 2, 1000"]),
    ("negative_size", {"bbox": [9, 9, -3, 4]}, ["bbox [9, 9, -3, 4]", "not two corners"]),
    ("zero_area", {"bbox": [9, 9, 0, 4]}, ["bbox [9, 9, 0, 4]", "zero area", "fix it"]),
    ("bad_area", {"area": "big"}, ["area 'big'", "px^2"]),
    ("bad_area", {"area": float("nan")}, ["area nan"]),
    ("bad_area", {"area": -1e-9}, ["area -1e-09"]),
    ("bad_area", {"area": "-1"}, ["area '-1'"]),
    ("bad_area", {"area": "1e999"}, ["area '1e999'"]),
    ("bad_area", {"area": [35]}, ["area [35]"]),
    ("bad_iscrowd", {"iscrowd": 2}, ["iscrowd 2", "0 nor 1"]),
    ("bad_iscrowd", {"iscrowd": "2"}, ["iscrowd '2'"]),
    ("bad_iscrowd", {"iscrowd": None}, ["iscrowd None"]),
    ("bad_ignore", {"ignore": 2}, ["ignore 2", "0 nor 1"]),
    ("bad_ignore", {"ignore": -1}, ["ignore -1"]),
    ("bad_ignore", {"ignore": 0.5}, ["ignore 0.5"]),
    ("bad_ignore", {"ignore": "no"}, ["ignore 'no'"]),
    ("bad_ignore", {"ignore": ""}, ["ignore ''"]),
    ("bad_ignore", {"ignore": None}, ["ignore None"]),
    ("bad_ignore", {"ignore": []}, ["ignore []"]),
]


@pytest.mark.parametrize(("reason", "change", "words"), ANNOTATION_FAULTS)
def test_bad_annotation(
    open_dataset: Open, document: dict[str, Any], reason: str, change: dict[str, Any], words: list[str]
) -> None:
    document["annotations"][2] |= change | {"id": 4711}
    with pytest.raises(DataError) as caught:
        open_dataset(document)
    message = str(caught.value)
    for word in ["instances.json", "annotations[2]", "id 4711", *words, "data.on_bad_annotation: skip", reason]:
        assert word in message
    assert "\n" not in message
    dataset = open_dataset(document, on_bad_annotation="skip")
    assert dataset.skipped == {reason: 1}
    assert len(dataset[0][1].labels) == 1


def test_an_annotation_that_is_no_object(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"][2] = [1, 2]
    with pytest.raises(DataError, match=r"annotations\[2\]: is not a JSON object"):
        open_dataset(document)


def test_all_bad_annotations_are_counted(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"][1]["image_id"] = 50
    document["annotations"][2]["image_id"] = 51
    document["annotations"][4]["bbox"] = [1, 1, 0, 0]
    with pytest.raises(DataError) as caught:
        open_dataset(document)
    lines = str(caught.value).splitlines()
    assert [f"annotations[{n}]" in line for n, line in zip((1, 2, 4), lines, strict=False)] == [True] * 3
    assert lines[3].startswith("3 errors in total: unknown_image 2, zero_area 1; or set data.on_bad_annotation: skip")


IMAGE_FAULTS = [
    ({"id": "7"}, ["id '7'", "images[0]", "unique"]),
    ({"id": "007.0"}, ["id '007.0'", "images[0]", "unique"]),
    ({"id": None}, ["id None", "number the images"]),
    ({"id": " "}, ["id ' '", "number the images"]),
    ({"id": 12.5}, ["id 12.5", "number the images"]),
    ({"id": 2**63}, ["id 9223372036854775808", "number the images"]),
    ({"id": -1}, ["id -1"]),
    ({"id": "-1"}, ["id '-1'"]),
    ({"id": 3}, ["id 3", "images[1]", "unique"]),
    ({"file_name": ""}, ["file_name ''"]),
    ({"file_name": "a\0.png"}, ["file_name 'a\\x00.png'"]),
    ({"file_name": "../a.png"}, ["file_name '../a.png'", "leads out"]),
    ({"file_name": "sub/../../a.png"}, ["leads out", "data.root"]),
    ({"file_name": "/etc/passwd"}, ["file_name '/etc/passwd'", "leads out"]),
    ({"width": 0}, ["width 0", "px"]),
    ({"height": 40.5}, ["height 40.5"]),
    ({"height": None}, ["height None"]),
    ({"height": "0"}, ["height '0'"]),
    ({"width": "60px"}, ["width '60px'"]),
]


@pytest.mark.parametrize(("change", "words"), IMAGE_FAULTS)
def test_bad_image_entry(
    open_dataset: Open, document: dict[str, Any], change: dict[str, Any], words: list[str]
) -> None:
    document["images"][2] |= change
    with pytest.raises(DataError) as caught:
        open_dataset(document, on_bad_annotation="skip")
    for word in ["instances.json", "images[2]", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("field", ["id", "file_name", "width", "height"])
def test_missing_image_field(open_dataset: Open, document: dict[str, Any], field: str) -> None:
    del document["images"][1][field]
    with pytest.raises(DataError, match=rf"images\[1\].*no field '{field}'"):
        open_dataset(document)


def test_names_that_only_begin_with_dots_are_fine(open_dataset: Open, document: dict[str, Any]) -> None:
    document["images"][2]["file_name"] = "..c.png"
    open_dataset(document)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "five"}, ["id 'five'"]),
        ({"name": None}, ["name None"]),
        ({"id": 2}, ["id 2", "twice"]),
        ({"name": "ship"}, ["'ship'", "twice"]),
    ],
)
def test_bad_category(open_dataset: Open, document: dict[str, Any], change: dict, words: list[str]) -> None:
    document["categories"][2] |= change
    with pytest.raises(DataError) as caught:
        open_dataset(document)
    for word in ["instances.json", "categories[2]", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [1, 2,\n ]}', ["invalid JSON", "line 2, column 2"]),
        ("", ["invalid JSON", "line 1"]),
        ("[1, 2]", ["not a COCO", "a list"]),
        ('{"shapes": [], "version": 3}', ["not a COCO", "'images'", "['shapes', 'version']"]),
        ('{"images": [], "annotations": {}, "categories": []}', ["'annotations'"]),
        ('{"images": [], "annotations": [], "categories": []}', ["categories is empty"]),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', ["images is empty"]),
        ("[" * 100_000, ["cannot be read as JSON"]),
    ],
)
def test_bad_document(open_dataset: Open, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(text)
    for word in ["instances.json", *words]:
        assert word in str(caught.value)


def test_corners_written_as_sizes(open_dataset: Open, document: dict[str, Any]) -> None:
    boxes = [[20 + k, 15 + k, 50 + k, 35] for k in range(6)]
    document["annotations"] = [{"image_id": 7, "category_id": 5, "bbox": box} for box in boxes]
    with pytest.raises(DataError, match=r"6 of 6 boxes leave their image.*x1, y1, x2, y2"):
        open_dataset(document)


def test_normalised_boxes(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"] = [{"image_id": 7, "category_id": 5, "bbox": [0.1, 0.2, 0.3, 0.1]}] * 5
    with pytest.raises(DataError, match="normalised boxes"):
        open_dataset(document)


def test_nothing_to_learn(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"] = document["annotations"][3:6]
    with pytest.raises(DataError, match=r"no usable object in 3 images .*'crowd': 1"):
        open_dataset(document)


def test_missing_folders_and_files(open_dataset: Open, document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such images folder.*data\.root"):
        open_dataset(document, images_root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none\.json: no such annotation file.*data\.root"):
        open_dataset(document, annotations=tmp_path / "none.json")


def test_missing_images_are_counted_and_listed(open_dataset: Open, document: dict[str, Any]) -> None:
    for number in range(7):
        entry = {"id": 100 + number, "file_name": f"sub/x{number}.png", "height": 40, "width": 60}
        document["images"].append(entry)
    document["images"] += [{"id": 200 + n, "file_name": f"y{n}.png", "height": 40, "width": 60} for n in range(17)]
    with pytest.raises(DataError, match=r"24 errors in total: missing_image 24; .*set data.root") as caught:
        open_dataset(document).check_files()
    lines = str(caught.value).splitlines()
    assert "sub/x0.png" in lines[0]
    assert lines[20] == "... and 4 more"


def test_wrong_case_is_pointed_out(open_dataset: Open, document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "A.PNG"
    with pytest.raises(DataError, match=r"a\.png exists: names are case-sensitive"):
        open_dataset(document).check_files()


def test_bytes_that_are_no_text(open_dataset: Open, tmp_path: Path) -> None:
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00" + json.dumps({}).encode())
    with pytest.raises(DataError, match=r"binary\.json: cannot be read as JSON"):
        open_dataset("{}", annotations=path)
