"""The objects of a COCO file as flat columns: sound entries at once, doubtful ones checked field by field."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

HUGE = 1e9
"""px; no image is that large."""


@dataclass(frozen=True, eq=False)
class ObjectColumns:
    """N objects, with the ids of the file.

    image_ids, category_ids  (N,)    int64
    boxes                    (N, 4)  float64 xywh px
    areas                    (N,)    float64 px^2, the `area` field or w*h
    crowd, ignored           (N,)    bool
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    @classmethod
    def empty(cls) -> ObjectColumns:
        ids, numbers, flags = np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.bool_)
        return cls(ids, ids, numbers, numbers[:, 0], flags, flags)

    def reorder(self, order: np.ndarray) -> None:
        """Object k becomes the one that was at order[k]; column by column in place, without room for a second copy."""
        for field in fields(self):
            column = getattr(self, field.name)
            column[:] = column.take(order, axis=0)


def to_columns(entries: list[Any], *, keep_zero_area: bool) -> ObjectColumns | None:
    """None unless every entry is plainly sound in itself, which a later look at each of them decides.

    Whether the ids are known is not looked at: categories usually come last in the file.
    """
    try:
        boxes = [entry["bbox"] for entry in entries]
        ids = [[entry[key] for entry in entries] for key in ("image_id", "category_id")]
        areas = [entry.get("area") for entry in entries]
        crowd = [entry.get("iscrowd", 0) for entry in entries]
        ignored = [bool(entry.get("ignore", False)) for entry in entries]
        numbers = list(chain.from_iterable(boxes))
        plain = (
            _types(boxes) <= {list}
            and set(map(len, boxes)) <= {4}
            and _types(numbers) <= {int, float}
            and _types(chain(*ids)) <= {int}
            and (_types(areas) <= {int, float} or _types(areas) == {type(None)})
            and set(crowd) <= {0, 1}
        )
        if not plain:
            return None
        xywh = np.array(numbers, dtype=np.float64).reshape(-1, 4)
        columns = ObjectColumns(
            image_ids=np.array(ids[0], dtype=np.int64),
            category_ids=np.array(ids[1], dtype=np.int64),
            boxes=xywh,
            areas=xywh[:, 2] * xywh[:, 3] if None in areas else np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=np.bool_),
            ignored=np.array(ignored, dtype=np.bool_),
        )
    except (KeyError, TypeError, AttributeError, OverflowError):
        return None
    sizes, areas_found = xywh[:, 2:], columns.areas
    sound = (
        (np.abs(xywh) < HUGE).all()
        and ((sizes >= 0) if keep_zero_area else (sizes > 0)).all()
        and ((areas_found >= 0) & (areas_found < math.inf)).all()
    )
    return columns if sound else None


def sound_columns(
    entries: Iterable[tuple[int, Any]],
    faults: Faults,
    *,
    image_ids: Collection[int],
    category_ids: Collection[int],
    keep_zero_area: bool,
) -> ObjectColumns:
    """The sound ones of the entries, which come with their numbers in the file; the others go to `faults`."""
    plain = []
    for number, entry in entries:
        fault = find_fault(entry, image_ids, category_ids, keep_zero_area)
        if fault is not None:
            faults.add(number, entry, *fault)
            continue
        box, area = entry["bbox"], entry.get("area")
        ids = {key: int(entry[key]) for key in ("image_id", "category_id")}
        plain.append(entry | ids | {"area": box[2] * box[3] if area is None else area})
    columns = to_columns(plain, keep_zero_area=keep_zero_area)
    assert columns is not None
    return columns


class ColumnsBuilder:
    """Objects of block after block in buffers that grow in place: no moment needs room for two copies."""

    def __init__(self) -> None:
        self._empty = {field.name: getattr(ObjectColumns.empty(), field.name) for field in fields(ObjectColumns)}
        self._content = {name: bytearray() for name in self._empty}

    def add(self, columns: ObjectColumns) -> None:
        for name, content in self._content.items():
            content += np.ascontiguousarray(getattr(columns, name)).data

    def finish(self) -> ObjectColumns:
        """All objects so far; takes no more."""
        return ObjectColumns(
            **{
                name: np.frombuffer(content, dtype=self._empty[name].dtype).reshape(-1, *self._empty[name].shape[1:])
                for name, content in self._content.items()
            }
        )


class Faults:
    """Bad annotations, counted by reason, and what is wrong with the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first = ""

    def add(self, number: int, entry: Any, reason: str, detail: str) -> None:
        self.counts[reason] += 1
        self.first = self.first or f"{describe('annotations', number, entry)}: {detail}"


def find_fault(
    entry: Any, image_ids: Collection[int], category_ids: Collection[int], keep_zero_area: bool
) -> tuple[str, str] | None:
    """(reason, what is wrong and how to mend it), or None for a sound annotation."""
    if not isinstance(entry, dict):
        return "not_an_object", "is not a JSON object; write {image_id, category_id, bbox}"
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not is_integer(image_id) or image_id not in image_ids:
        return "unknown_image", f"image_id {shorten(image_id)} is no id in images; add that image"
    if not is_integer(category_id) or category_id not in category_ids:
        known = shorten(sorted(category_ids))
        return (
            "unknown_category",
            f"category_id {shorten(category_id)} is none of {known}; add that category",
        )
    box, area = entry.get("bbox"), entry.get("area")
    if not isinstance(box, list) or len(box) != 4:
        return "box_length", f"bbox {shorten(box)} is not [x, y, width, height]; write four numbers"
    for value in box:
        if type(value) is not int and type(value) is not float:
            return "not_numeric", f"bbox {shorten(box)} holds a value that is no number; write four numbers"
        if not -HUGE < value < HUGE:
            return "not_finite", f"bbox {shorten(box)} holds NaN or an infinite or huge value; write it in px"
    if box[2] < 0 or box[3] < 0:
        hint = "bbox is [x, y, width, height], not two corners"
        return "negative_size", f"bbox {shorten(box)} has a negative width or height ({hint}); mend it"
    if not keep_zero_area and (box[2] == 0 or box[3] == 0):
        return "zero_area", f"bbox {shorten(box)} has zero area; fix it"
    if area is not None and not (type(area) in (int, float) and 0 <= area < math.inf):
        return "bad_area", f"area {shorten(area)} is no number >= 0; write it in px^2 or leave the field out"
    if entry.get("iscrowd", 0) not in (0, 1):
        return "bad_iscrowd", f"iscrowd {shorten(entry['iscrowd'])} is neither 0 nor 1; write one of them"
    return None


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def describe(section: str, number: int, entry: Any) -> str:
    known = f" (id {shorten(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
    return f"{section}[{number}]{known}"


def shorten(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) and value.startswith("a ") else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
