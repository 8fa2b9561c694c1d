"""Fields beside the box: numbers as text are read, an area of 0 is recomputed, what is dropped is reported."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from datasets.annotations.json_stream import as_flag, as_integer, as_number
from datasets.coco import CocoDetection
from engine.metrics.average_precision import COCO, detection_metrics
from engine.metrics.records import ImageRecord

Open = Callable[..., CocoDetection]


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """Only objects that are used, six on two images."""
    boxes = [(7, [4, 30, 10, 8]), (7, [20.5, 4.25, 5, 7]), (7, [30, 3, 5, 9]), (3, [10, 10, 8, 6]), (3, [40, 20, 9, 9])]
    document["annotations"] = [
        {"id": 1 + k, "image_id": image, "category_id": [2, 5, 90][k % 3], "bbox": box, "area": box[2] * box[3]}
        for k, (image, box) in enumerate([*boxes, (3, [1, 1, 4, 4])])
    ]
    return document


def contents(dataset: CocoDetection) -> list[object]:
    return [
        (truth.image_id, truth.boxes.tolist(), truth.labels.tolist(), truth.areas.tolist(), truth.crowd.tolist())
        for truth in map(dataset.ground_truth, range(len(dataset)))
    ]


@pytest.mark.parametrize("field", ["ignore", "iscrowd"])
@pytest.mark.parametrize(
    ("value", "flag", "fixed"),
    [
        (0, 0, 0), (1, 1, 0), (False, 0, 0), (True, 1, 0), (0.0, 0, 0), (1.0, 1, 0), (-0.0, 0, 0),
        ("0", 0, 1), ("1", 1, 1), ("0.0", 0, 1), ("false", 0, 1), ("False", 0, 1), ("TRUE", 1, 1), (" true ", 1, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_flags_that_read_as_0_or_1(
    open_dataset: Open, document: dict[str, Any], field: str, value: object, flag: int, fixed: int, training: bool
) -> None:
    plain(document)["annotations"][1][field] = value
    dataset = open_dataset(document, training=training)
    column = {"ignore": dataset.table.ignored, "iscrowd": dataset.table.crowd}[field]
    assert column.tolist() == [False, bool(flag), False, False, False, False]
    assert dataset.fixed.get(field, 0) == fixed
    assert dataset.dropped == ({{"ignore": "ignored", "iscrowd": "crowd"}[field]: 1} if flag else {})


@pytest.mark.parametrize(
    ("value", "area"), [("0", 80), (0.0, 80), (-0.0, 80), ("35", 35), ("35.5", 35.5), ("3.5e1", 35), (35, 35)]
)
@pytest.mark.parametrize("training", [True, False])
def test_areas(open_dataset: Open, document: dict[str, Any], value: object, area: float, training: bool) -> None:
    plain(document)["annotations"][0]["area"] = value
    dataset = open_dataset(document, training=training)
    assert dataset.table.areas.tolist() == [area, 35, 45, 48, 81, 16]
    fixed = {"area": 1} if isinstance(value, str) else {}
    assert {k: n for k, n in dataset.fixed.items() if k != "no_iscrowd"} == fixed | (
        {"area_zero": 1} if area == 80 else {}
    )
    assert dataset.dropped == {}
    assert dataset.statistics().num_objects == 6


def test_a_zero_area_beside_an_empty_box_stays(open_dataset: Open, document: dict[str, Any]) -> None:
    plain(document)["annotations"][0] |= {"bbox": [4, 30, 0, 8], "area": 0}
    dataset = open_dataset(document, training=False)
    assert dataset.table.areas[0] == 0
    assert "area_zero" not in dataset.fixed


def test_zero_areas_are_the_only_difference_to_pycocotools(open_dataset: Open, document: dict[str, Any]) -> None:
    """Read with recompute_area, tiny objects count as such; without, all numbers are pycocotools' own."""
    for entry in plain(document)["annotations"]:
        entry |= {"area": 0 if entry["id"] % 2 else entry["area"], "iscrowd": 0}
    document["annotations"][0] |= {"bbox": [2, 2, 40, 36]}
    found = [
        {"image_id": e["image_id"], "category_id": e["category_id"], "bbox": e["bbox"], "score": 0.5 + e["id"] / 100}
        for e in document["annotations"]
    ]
    with redirect_stdout(io.StringIO()):
        index = CocoIndex()
        index.dataset = copy.deepcopy(document)
        index.createIndex()
        official = COCOeval(index, index.loadRes(found), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    summaries = {}
    for recompute in (False, True):
        dataset = open_dataset(document, training=False, recompute_area=recompute)
        summaries[recompute] = list(detection_metrics(records(dataset, found), 3, COCO).summary().values())[:6]
    np.testing.assert_allclose(summaries[False], official.stats[:6], rtol=0, atol=1e-12)
    assert summaries[True] != summaries[False]


def records(dataset: CocoDetection, found: list[dict[str, Any]]) -> list[ImageRecord]:
    ids = [2, 5, 90]
    out = []
    for truth in map(dataset.ground_truth, range(len(dataset))):
        mine = [entry for entry in found if entry["image_id"] == truth.image_id]
        out.append(
            ImageRecord(
                image_id=truth.image_id,
                gt_boxes=truth.boxes,
                gt_labels=truth.labels,
                gt_areas=truth.areas,
                gt_crowd=truth.crowd,
                boxes=np.array([entry["bbox"] for entry in mine], np.float64).reshape(-1, 4),
                labels=np.array([ids.index(entry["category_id"]) for entry in mine], np.int64),
                scores=np.array([entry["score"] for entry in mine], np.float64),
            )
        )
    return out


@pytest.mark.parametrize(
    ("areas", "count"),
    [([15] * 6, 0), ([1] * 6, 0), ([900] + [16] * 5, 1), ([1e6] * 6, 6), ([0.01] * 6, 6), ([0.01] + [16] * 5, 1)],
)
def test_areas_far_from_their_boxes(
    open_dataset: Open, document: dict[str, Any], areas: list[float], count: int
) -> None:
    """A mask may be a small part of its box; it cannot be larger, nor may a tenth be next to nothing."""
    for entry, area in zip(plain(document)["annotations"], areas, strict=True):
        entry["area"] = area
    warnings = [text for text in open_dataset(document, training=False).warnings if "far from their box" in text]
    assert [f"the area of {count} objects" in text for text in warnings] == [True] * (count > 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"ignore": 1}, "ignored"),
        ({"bbox": [1, 1, 0.5, 9], "area": 4.5}, "below_one_pixel"),
        ({"bbox": [70, 3, 5, 9], "area": 45}, "outside_image"),
        ({"bbox": [1, 2, 3]}, "box_length"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_more_than_a_tenth_dropped_is_a_warning(
    open_dataset: Open, document: dict[str, Any], change: dict[str, Any], words: str, training: bool
) -> None:
    entries = plain(document)["annotations"]
    sound = [entries[k % 5] | {"id": 10 + k, "bbox": [k, k, 9, 9], "area": 81} for k in range(18)]
    for count, warned in ((2, False), (3, True)):
        document["annotations"] = [*(entries[0] | change | {"id": 90 + k} for k in range(count)), *sound]
        dataset = open_dataset(document, training=training, on_bad_annotation="skip")
        lines = [line for line in dataset.remarks() if "are dropped" in line]
        assert len(lines) == warned
        if warned:
            assert f"3 of 21 objects are dropped ({words} 3)" in lines[0]
            assert ("not trained on" in lines[0]) == training


def test_reasons_add_up(open_dataset: Open, document: dict[str, Any]) -> None:
    lines = [line for line in open_dataset(document).remarks() if "are dropped" in line]
    assert "4 of 7 objects are dropped (crowd 1, ignored 1, below_one_pixel 1, outside_image 1)" in lines[0]


# ---- text as numbers ----


@pytest.mark.parametrize(
    "change",
    [
        lambda value: str(value),
        lambda value: f"{value:012d}",
        lambda value: f"{value}.0",
        float,
    ],
)
@pytest.mark.parametrize("sections", [("images", "annotations"), ("images",), ("annotations",)])
def test_image_ids_that_read_as_integers(
    open_dataset: Open, document: dict[str, Any], change: Callable[[int], Any], sections: tuple[str, ...]
) -> None:
    expected = contents(open_dataset(plain(document)))
    for section, key in (("images", "id"), ("annotations", "image_id")):
        for entry in document[section] if section in sections else []:
            entry[key] = change(entry[key])
    dataset = open_dataset(document)
    assert contents(dataset) == expected
    count = (3 if "images" in sections else 0) + (6 if "annotations" in sections else 0)
    assert dataset.fixed["image_id"] == count


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("annotations", "categories", "images")])
def test_image_ids_that_are_names(open_dataset: Open, document: dict[str, Any], order: tuple[str, ...]) -> None:
    """They are the images' places in the file; everything else is as with numbers."""
    numbered = plain(document)
    names = {7: "img-0000000a", 3: "9999999_00001_d_0000001", 12: "99999999999999999999"}
    expected = [entry[1:] for entry in contents(open_dataset(numbered))]  # type: ignore[index]
    for entry in numbered["images"]:
        entry["id"] = names[entry["id"]]
    for entry in numbered["annotations"]:
        entry["image_id"] = names[entry["image_id"]]
    dataset = open_dataset({key: numbered[key] for key in order})
    found = contents(dataset)
    assert [entry[1:] for entry in found] == expected  # type: ignore[index]
    assert [entry[0] for entry in found] == [0, 1, 2]  # type: ignore[index]
    assert dataset.fixed["image_name"] == 3
    assert dataset[1][1].image_id == 1


def test_names_and_numbers_do_not_meet(open_dataset: Open, document: dict[str, Any]) -> None:
    """A name takes a number that no image has, and an annotation that has this number means no image."""
    plain(document)["images"][1]["id"] = "b"
    document["images"][0]["id"], document["images"][2]["id"] = 1, "4"
    for entry in document["annotations"]:
        entry["image_id"] = {7: 1, 3: "b"}[entry["image_id"]]
    dataset = open_dataset(document)
    assert dataset.table.image_ids.tolist() == [1, 7, 4]  # its place, 1, and the next, 4, are taken
    assert [len(truth.labels) for truth in map(dataset.ground_truth, range(3))] == [3, 3, 0]
    document["annotations"][0]["image_id"] = 7
    assert open_dataset(document, on_bad_annotation="skip").skipped == {"unknown_image": 1}


def test_names_that_differ_only_in_writing_are_different(open_dataset: Open, document: dict[str, Any]) -> None:
    plain(document)
    for entry, name in zip(document["images"], ("a", "A", "a "), strict=True):
        entry["id"] = name
    for entry, name in zip(document["annotations"], ("a", "A", "a ", "a", "A", "a "), strict=True):
        entry["image_id"] = name
    assert [len(truth[2]) for truth in contents(open_dataset(document))] == [2, 2, 2]  # type: ignore[index]


def test_sizes_as_text(open_dataset: Open, document: dict[str, Any]) -> None:
    for entry in plain(document)["images"]:
        entry |= {"height": "40", "width": "060"}
    dataset = open_dataset(document)
    assert dataset.table.sizes.tolist() == [[40, 60]] * 3
    assert dataset.fixed["image_size"] == 3
    dataset.check_files()
    assert dataset[0][0].shape == (3, 40, 60)


def test_what_reads_as_what() -> None:
    assert [as_integer(v) for v in ("7", "-7", "007", "7.0", "-0", 7.0, 2**63 - 1)] == [7, -7, 7, 7, 0, 7, 2**63 - 1]
    for other in ("", " 7", "7.5", "1e3", "0x7", "7_0", "\u0667", "9" * 19 + "0", 2**63, 7.5, True, None, [7], "NaN"):
        assert as_integer(other) is None, other
    assert [as_number(v) for v in ("40.5", "1e2", 3, 2.5)] == [40.5, 100, 3, 2.5]
    for other in ("", "nan", "inf", "1,5", True, None, [1]):
        assert as_number(other) is None, other
    for other in ("", "yes", "2", 2, None, [], {}, float("nan")):
        assert as_flag(other) is None, other


def test_faulty_images_bring_no_further_errors(open_dataset: Open, document: dict[str, Any]) -> None:
    for change in ({"width": 0}, {"id": "b", "file_name": ""}, {"id": 3.5}, {"id": None}, {"id": -1}):
        spoilt = plain(copy.deepcopy(document))
        spoilt["images"][1] |= change
        for entry in spoilt["annotations"]:
            if entry["image_id"] == 3:
                entry["image_id"] = spoilt["images"][1]["id"]
        with pytest.raises(Exception, match=r"images\[1\]") as caught:
            open_dataset(json.dumps(spoilt))
        assert "\n" not in str(caught.value), change
        assert "bad_images" in str(caught.value)
