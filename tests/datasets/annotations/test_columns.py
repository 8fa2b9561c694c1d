"""Sound entries read at once and doubtful ones checked field by field give one table, in one pass over the file."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from datasets.annotations import columns, json_stream
from datasets.annotations import table as annotations
from datasets.annotations.columns import PackedStrings
from datasets.annotations.table import AnnotationTable
from datasets.coco import CocoDetection
from datasets.findings import Findings

Open = Callable[..., CocoDetection]


def arrays(table: AnnotationTable) -> dict[str, tuple[np.dtype, list[Any]]]:
    values = {field.name: getattr(table, field.name) for field in fields(table)}
    return {name: (v.dtype, v.tolist()) for name, v in values.items() if isinstance(v, np.ndarray)}


def many(document: dict[str, Any], *, count: int = 40) -> dict[str, Any]:
    """More objects of the three images, in no order."""
    rng = np.random.default_rng(0)
    for number in range(count):
        box = [*rng.uniform(0, 30, 2).tolist(), *rng.uniform(1, 9, 2).tolist()]
        image, category = (int(rng.choice(ids)) for ids in ([7, 3, 12], [90, 2, 5]))
        document["annotations"].append({"id": 100 + number, "image_id": image, "category_id": category, "bbox": box})
    return document


@pytest.mark.parametrize("with_areas", [True, False])
def test_careful_reading_gives_the_same_table(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, with_areas: bool
) -> None:
    for entry in many(document)["annotations"]:
        entry.pop("area", None)
        if with_areas:
            entry["area"] = entry["bbox"][2] * 2
    quick = arrays(open_dataset(document).table)
    monkeypatch.setattr(annotations, "to_columns", lambda entries, *, keep_zero_area: None)
    assert arrays(open_dataset(document).table) == quick


def test_sound_entries_are_not_looked_at_one_by_one(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in document["annotations"]:
        entry.setdefault("area", 12)
    monkeypatch.delattr(annotations, "EntryReader")
    open_dataset(document)


def test_skipped_entries_change_nothing_else(open_dataset: Open, document: dict[str, Any]) -> None:
    whole = arrays(open_dataset(many(document)).table)
    spoilt = copy.deepcopy(document)
    for place, change in ((9, {"image_id": 4}), (3, {"bbox": [1, 2]}), (0, {"category_id": "6"}), (5, {"area": -1})):
        spoilt["annotations"].insert(place, document["annotations"][6] | {"id": 900 + place} | change)
    table = open_dataset(spoilt, on_bad_annotation="skip").table
    assert arrays(table) == whole
    assert table.skipped == {"unknown_category": 1, "box_length": 1, "bad_area": 1, "unknown_image": 1}


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few entries has many blocks, pieces and packs."""
    for module, name, value in (
        (json_stream, "_CHUNK", 512),
        (json_stream, "_ENTRIES", 5),
        (annotations, "PIECE", 2),
        (annotations, "BLOCK", 3),
        (columns, "_PACKED", 4),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(
    "change", [{"bbox": [1, 2]}, {"image_id": 4}, {"category_id": "6"}, {"id": "a"}, {"area": "9"}]
)
def test_a_faulty_file_is_read_once(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    reads: list[object] = []

    def count_reads(*arguments: Any) -> Any:
        reads.append(arguments)
        return json_stream.read_object(*arguments)

    monkeypatch.setattr(annotations, "read_object", count_reads)
    many(document)["annotations"][20] |= change
    open_dataset(document, on_bad_annotation="skip")
    assert len(reads) == 1


def test_only_the_entries_near_a_fault_are_checked_field_by_field(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    read = annotations.EntryReader.read

    def note_numbers(reader: Any, entries: Any) -> Any:
        entries = list(entries)
        checked.extend(number for number, _ in entries)
        return read(reader, entries)

    monkeypatch.setattr(annotations.EntryReader, "read", note_numbers)
    entries = many(document, count=400)["annotations"]
    for entry in entries:
        entry["area"] = 9
    entries[200]["bbox"], entries[300]["image_id"] = [1, 2], 4
    assert open_dataset(document, on_bad_annotation="skip").skipped == {"box_length": 1, "unknown_image": 1}
    assert checked == [*range(192, 256), 300]


@pytest.mark.parametrize("spoilt", [1, 2, 17, 1000])
def test_objects_and_findings_keep_the_order_of_the_file(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, spoilt: int
) -> None:
    """In a file of many blocks with a faulty entry at every `spoilt`-th place, of five kinds in turn."""
    sound = copy.deepcopy(many(document, count=200))
    small_blocks(monkeypatch)
    changes = itertools.cycle(
        [{"image_id": 4}, {"bbox": [1, 2]}, {"category_id": "6"}, {"area": -1}, {"iscrowd": "maybe", "image_id": 99}]
    )
    entries, places = document["annotations"], list(range(0, 200, spoilt))
    for place in places:
        entries.insert(place, entries[place] | {"id": 1000 + place} | next(changes))
    found = Findings()
    table = open_dataset(document, on_bad_annotation="skip", findings=found).table
    monkeypatch.undo()
    assert arrays(table) == arrays(open_dataset(sound).table)
    numbers = [int(message.split("annotations[")[1].split("]")[0]) for message in found.messages("skipped")]
    assert numbers == places


@pytest.mark.parametrize("order", [("annotations", "categories", "images"), ("categories", "annotations", "images")])
def test_the_order_of_the_sections_does_not_matter(
    open_dataset: Open, document: dict[str, Any], order: tuple[str, ...]
) -> None:
    expected = arrays(open_dataset(many(document)).table)
    assert arrays(open_dataset({"info": {}} | {key: document[key] for key in order}).table) == expected


def test_ids_may_lie_far_apart(open_dataset: Open, document: dict[str, Any]) -> None:
    close = arrays(open_dataset(many(document)).table)
    images, categories = {7: 2**62, 3: 0, 12: 10**9}, {90: 2**62, 2: -(2**62), 5: 0}
    for section, key, renumbered in (
        ("images", "id", images),
        ("categories", "id", categories),
        ("annotations", "image_id", images),
        ("annotations", "category_id", categories),
    ):
        for entry in document[section]:
            entry[key] = renumbered[entry[key]]
    apart = arrays(open_dataset(document).table)
    assert apart.pop("image_ids")[1] == [images[old] for old in close.pop("image_ids")[1]]
    assert apart == close


def test_objects_of_one_image_keep_the_order_of_the_file(open_dataset: Open, document: dict[str, Any]) -> None:
    table = open_dataset(many(document)).table
    for position, image_id in enumerate([7, 3, 12]):
        boxes = [entry["bbox"] for entry in document["annotations"] if entry["image_id"] == image_id]
        assert table.boxes[slice(*table.first_object[position : position + 2])].tolist() == boxes


def test_nothing_per_image_or_object_is_a_python_object(open_dataset: Open, document: dict[str, Any]) -> None:
    """A worker would copy it: reading an object counts its references."""
    few, more = many(copy.deepcopy(document)), many(document, count=2000)
    more["images"] += [{"id": 100 + n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in range(2000)]
    lengths = []
    for content in (few, more):
        dataset = open_dataset(content)
        held = [value for record in (dataset, dataset.table) for value in vars(record).values()]
        assert not any(value.dtype.hasobject for value in held if isinstance(value, np.ndarray))
        lengths.append([len(value) for value in held if isinstance(value, (list, tuple, dict, set))])
    assert lengths[0] == lengths[1]


def test_packed_strings() -> None:
    strings = ["a.png", "", "sub/å 你好.png", "\ud800"]
    packed = pickle.loads(pickle.dumps(PackedStrings.of(strings)))
    assert [packed[i] for i in range(len(packed))] == strings
    assert len(PackedStrings.of([])) == 0
