"""Categories: parents are no classes, classes without objects are reported, and one fault is one finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from datasets.build import build_dataset
from datasets.checks import check_classes, compare_splits
from datasets.coco import CocoDetection
from datasets.findings import Findings
from datasets.structures import DataError
from tests.support.tiny_run import write_experiment

Open = Callable[..., CocoDetection]


def with_categories(document: dict[str, Any], *categories: tuple[Any, ...]) -> dict[str, Any]:
    """(id, name, supercategory, objects) each; the objects lie on image 7."""
    document["categories"], document["annotations"] = [], []
    for category_id, name, parent, count in categories:
        document["categories"].append({"id": category_id, "name": name, "supercategory": parent})
        for _ in range(count):
            number = len(document["annotations"]) + 1
            box = [number, number, 9, 9]
            document["annotations"].append({"id": number, "image_id": 7, "category_id": category_id, "bbox": box})
    return document


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        ([(0, "trees", "none", 0), (1, "oak", "trees", 2), (2, "pine", "trees", 2)], ("oak", "pine")),
        ([(0, "tree", "none", 0), (1, "tree", "tree", 2)], ("tree",)),
        ([("0", "trees", None, 0), ("1", "oak", "trees", 2)], ("oak",)),
        ([(5, "oak", "trees", 2), (9, "trees", "trees", 0)], ("oak",)),
        ([(1, "plants", "none", 0), (2, "trees", "plants", 0), (3, "oak", "trees", 2)], ("oak",)),
        # Not mere parents: with objects, of none but themselves, of each other.
        ([(0, "trees", "none", 1), (1, "oak", "trees", 2)], ("trees", "oak")),
        ([(0, "tree", "tree", 0), (1, "oak", "oak", 2)], ("tree", "oak")),
        ([(0, "tree", "none", 0), (1, "oak", "", 2)], ("tree", "oak")),
        ([(0, "none", "none", 0), (1, "oak", "oak", 2)], ("none", "oak")),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_mere_parents_are_no_classes(
    open_dataset: Open,
    document: dict[str, Any],
    categories: list[tuple[Any, ...]],
    names: tuple[str, ...],
    training: bool,
) -> None:
    dataset = open_dataset(with_categories(document, *categories), training=training)
    assert dataset.categories == names
    dropped = [str(category[1]) for category in categories if category[1] not in names or category[2] == "none"]
    lines = [line for line in dataset.remarks() if "is the supercategory of others: no class here" in line]
    assert len(lines) == len(categories) - len(names)
    assert all(any(f"{name!r} has no objects" in line for name in dropped) for line in lines)
    assert sorted(set(dataset.table.labels.tolist())) == sorted({names.index(c[1]) for c in categories if c[3]})


def test_categories_of_each_other_stay(open_dataset: Open, document: dict[str, Any]) -> None:
    with_categories(document, (0, "a", "b", 0), (1, "b", "a", 0))
    assert open_dataset(document, training=False).categories == ("a", "b")


def test_the_number_of_classes_decides(open_dataset: Open, document: dict[str, Any]) -> None:
    """A checkpoint that was trained with the parent as a class can be evaluated on."""
    with_categories(document, (0, "trees", "none", 0), (1, "oak", "trees", 2), (2, "pine", "trees", 2))
    for number, found in ((2, 2), (3, 3), (7, 2)):
        dataset = open_dataset(document, num_classes=number)
        assert len(dataset.categories) == found
    dataset = open_dataset(document, num_classes=3)
    assert "model.num_classes counts it; set 2 to drop it" in "".join(dataset.warnings)
    with pytest.raises(DataError, match=r"2 categories \(oak, pine\) without \['trees'\].* is 7; set .*num_classes: 2"):
        check_classes(open_dataset(document, num_classes=7), 7)
    with_categories(document, (0, "tree", "none", 0), (1, "tree", "tree", 2))
    assert open_dataset(document, num_classes=2).categories == ("tree",)


def test_both_splits_drop_alike(open_dataset: Open, document: dict[str, Any]) -> None:
    """A parent with objects in one split only is a class of both, where the model has as many."""
    splits = []
    for training, objects, number in ((True, 1, 2), (False, 0, 2), (False, 0, 5)):
        with_categories(document, (0, "vehicle", "none", objects), (1, "car", "vehicle", 2))
        splits.append(open_dataset(document, training=training, num_classes=number))
    found = Findings()
    compare_splits(splits[0], splits[1], found)
    assert found.counts("error") == {}
    compare_splits(splits[0], splits[2], found)
    assert found.counts("error") == {"categories_differ": 1}
    assert "without ['vehicle'] (no objects, only the supercategory of others)" in found.messages("error")[0]


def test_the_config_says_how_many_classes(tmp_path: Path) -> None:
    config = load_config(
        write_experiment(tmp_path, train=[2], val=[1]), ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    )
    dataset = build_dataset(config.data, training=True, seed=0, num_classes=config.model.num_classes)
    assert dataset.categories == ("square", "other")


def test_classes_without_objects_are_a_warning_in_training(open_dataset: Open, document: dict[str, Any]) -> None:
    categories = [(k, f"class {k}", "none", 0) for k in range(2, 14)]
    with_categories(document, (1, "oak", "none", 2), *categories)
    [line] = open_dataset(document).warnings
    assert "12 of 13 categories have no object to learn from: class 2, class 3" in line
    assert line.endswith("class 11 and 2 more")
    assert open_dataset(document, training=False).warnings == ()
    for entry in document["annotations"]:
        entry["category_id"] = 2
    document["annotations"][0] |= {"category_id": 1, "ignore": 1}
    assert "12 of 13 categories have no object to learn from: oak, class 3" in "".join(open_dataset(document).warnings)


FAULTS = [
    ({"name": "oak"}, "name 'oak' appears twice, for id 1 too; make names unique"),
    ({"id": 1}, "id 1 appears twice, for 'oak' too; make ids unique"),
    ({"name": None}, "name None is no text"),
    ({"name": ["pine"]}, r"name ['pine'] is no text"),
    ({"id": "two"}, "id 'two' is not an integer"),
    ({"id": 2.5}, "id 2.5 is not an integer"),
    ({"id": True}, "id True is not an integer"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_faulty_category_is_one_finding(
    open_dataset: Open, document: dict[str, Any], change: dict[str, Any], words: str, policy: str
) -> None:
    with_categories(document, (1, "oak", "none", 2), (2, "pine", "none", 3))
    document["categories"][1] |= change
    for entry in document["annotations"][2:]:
        entry["category_id"] = document["categories"][1]["id"]
    with pytest.raises(DataError) as caught:
        open_dataset(document, on_bad_annotation=policy)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
    found = Findings()
    dataset = open_dataset(document, on_bad_annotation=policy, findings=found)
    assert found.counts("error") == {"bad_categories": 1}
    assert found.counts("skipped") == {}
    check_classes(dataset, 2)


@pytest.mark.parametrize("field", ["name", "id"])
def test_a_category_without_a_field(open_dataset: Open, document: dict[str, Any], field: str) -> None:
    with_categories(document, (1, "oak", "none", 2), (2, "pine", "none", 0 if field == "id" else 3))
    del document["categories"][1][field]
    with pytest.raises(DataError, match=rf"categories\[1\].*has no field '{field}'.*\[bad_categories\]"):
        open_dataset(document)


def test_no_sound_category_is_one_error(open_dataset: Open, document: dict[str, Any]) -> None:
    with_categories(document, (1, None, "none", 2))
    with pytest.raises(DataError, match=r"name None is no text; write the class's name \[bad_categories\]$"):
        open_dataset(document)
