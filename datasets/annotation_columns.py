"""The objects of a COCO file as flat columns: sound entries at once, doubtful ones checked field by field."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.findings import Findings, Severity

SKIP_HINT = "or set data.on_bad_annotation: skip to leave such annotations out"
HUGE = 1e9
"""px; no image is that large."""
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)


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

    def select(self, wanted: np.ndarray) -> ObjectColumns:
        """(N,) bool -> a copy of the objects that are wanted."""
        return ObjectColumns(**{field.name: getattr(self, field.name)[wanted] for field in fields(self)})

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
    return columns if _are_sound(columns, keep_zero_area=keep_zero_area) else None


def _are_sound(columns: ObjectColumns, *, keep_zero_area: bool) -> bool:
    sizes, areas = columns.boxes[:, 2:], columns.areas
    return bool(
        (np.abs(columns.boxes) < HUGE).all()
        and ((sizes >= 0) if keep_zero_area else (sizes > 0)).all()
        and ((areas >= 0) & (areas < HUGE**2)).all()
    )


def sound_columns(
    entries: Iterable[tuple[int, Any]],
    known: Known,
    findings: Findings,
    *,
    path: Path,
    severity: Severity,
    keep_zero_area: bool,
) -> ObjectColumns:
    """The sound ones of the entries, which come with their numbers in the file; the others are findings."""
    plain = []
    for number, entry in entries:
        fault = find_fault(entry, known, keep_zero_area)
        if fault is not None:
            where = f"{path}: {describe('annotations', number, entry)}"
            findings.add(severity, fault[0], f"{where}: {fault[1]}", hint=SKIP_HINT)
            continue
        if type(entry["category_id"]) is not int:
            message = f"{path}: category_id {shorten(entry['category_id'])} read as an integer"
            findings.add("fixed", "category_id", message)
        box, area = entry["bbox"], entry.get("area")
        ids = {"image_id": int(entry["image_id"]), "category_id": as_category_id(entry["category_id"])}
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


@dataclass(frozen=True)
class Known:
    """The ids that annotations may refer to."""

    image_ids: frozenset[int]
    category_ids: frozenset[int]

    @cached_property
    def categories(self) -> str:
        return shorten(sorted(self.category_ids))


def find_fault(entry: Any, known: Known, keep_zero_area: bool) -> tuple[str, str] | None:
    """(reason, what is wrong and how to mend it), or None for a sound annotation."""
    if not isinstance(entry, dict):
        return "not_an_object", "is not a JSON object; write {image_id, category_id, bbox}"
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not is_integer(image_id) or image_id not in known.image_ids:
        return "unknown_image", f"image_id {shorten(image_id)} is no id in images; add that image"
    if as_category_id(category_id) not in known.category_ids:
        return (
            "unknown_category",
            f"category_id {shorten(category_id)} is none of {known.categories}; add that category",
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
    if area is not None and not (type(area) in (int, float) and 0 <= area < HUGE**2):
        return "bad_area", f"area {shorten(area)} is no number >= 0; write it in px^2 or leave the field out"
    if entry.get("iscrowd", 0) not in (0, 1):
        return "bad_iscrowd", f"iscrowd {shorten(entry['iscrowd'])} is neither 0 nor 1; write one of them"
    return None


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def as_category_id(value: Any) -> int | None:
    """3 of 3, 3.0 or "3"; None of anything else, and beyond 64 bits."""
    if isinstance(value, str) and INTEGER.fullmatch(value):
        value = int(value)
    return int(value) if is_integer(value) and -(2**63) <= value < 2**63 else None


def describe(section: str, number: int, entry: Any) -> str:
    known = f" (id {shorten(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
    return f"{section}[{number}]{known}"


def shorten(value: Any, limit: int = 80) -> str:
    """The value in at most `limit` characters, however deep or large it is."""
    text = value if isinstance(value, str) and value.startswith("a ") else _repr.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 4, 30, 30
_repr.maxstring = _repr.maxlong = _repr.maxother = 80
