"""The objects of a COCO file as flat columns: sound entries at once, doubtful ones checked field by field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations.validation import Categories, Images
from datasets.annotations.values import Mended, as_flag, as_integer, as_number, describe, id_key, shorten
from datasets.findings import Findings, Severity

SKIP_HINT = "or set data.on_bad_annotation: skip to leave such annotations out"
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
        ignored = [entry.get("ignore", 0) for entry in entries]
        numbers = list(chain.from_iterable(boxes))
        plain = (
            _types(boxes) <= {list}
            and set(map(len, boxes)) <= {4}
            and _types(numbers) <= {int, float}
            and _types(chain(*ids)) <= {int}
            and (_types(areas) <= {int, float} or _types(areas) == {type(None)})
            and set(crowd) <= {0, 1}
            and set(ignored) <= {0, 1}
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


class EntryReader:
    """Reads annotations field by field: what is sound becomes an object, what reads as sound is noted as mended.

    Entries of an image or a category that has a fault of its own are left out without a further finding.

    severity   of a fault: "error" or "skipped"
    """

    def __init__(
        self,
        images: Images,
        categories: Categories,
        findings: Findings,
        *,
        path: Path,
        severity: Severity,
        keep_zero_area: bool,
    ) -> None:
        self.images, self.categories, self.findings = images, categories, findings
        self.path, self.severity, self.keep_zero_area = path, severity, keep_zero_area
        self.mended = Mended()
        self._image_ids = frozenset(images.ids.tolist())
        self._category_ids = frozenset(categories.ids.tolist())

    def read(self, entries: Iterable[tuple[int, Any]]) -> ObjectColumns:
        """The sound ones of the entries, which come with their numbers in the file; the others are findings."""
        rows = []
        for number, entry in entries:
            try:
                row = self._row(number, entry)
            except _FaultError as fault:
                where = f"{self.path}: {describe('annotations', number, entry)}"
                self.findings.add(self.severity, fault.reason, f"{where}: {fault}", hint=SKIP_HINT)
                continue
            if row is not None:
                rows.append(row)
        image_ids, category_ids, boxes, areas, crowd, ignored = zip(*rows, strict=True) if rows else ((),) * 6
        return ObjectColumns(
            image_ids=np.array(image_ids, dtype=np.int64),
            category_ids=np.array(category_ids, dtype=np.int64),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=np.bool_),
            ignored=np.array(ignored, dtype=np.bool_),
        )

    def _row(self, number: int, entry: Any) -> tuple[Any, ...] | None:
        """Its values in the order of ObjectColumns; None where it belongs to an entry that has a fault."""
        if not isinstance(entry, dict):
            raise _FaultError("not_an_object", "is not a JSON object; write {image_id, category_id, bbox}")
        image_id, category_id = self._image_id(entry), self._category_id(entry)
        box = _read_box(entry.get("bbox"), keep_zero_area=self.keep_zero_area)
        area = _read_area(entry.get("area"))
        area = box[2] * box[3] if area is None else area
        crowd, ignored = _read_flag(entry, "iscrowd"), _read_flag(entry, "ignore")
        if image_id is None or category_id is None:
            return None
        ids: dict[str, float] = {"image_id": image_id, "category_id": category_id}
        others: dict[str, float] = {"area": area, "iscrowd": int(crowd), "ignore": int(ignored)}
        for key, value in (ids | others).items():
            if isinstance(entry.get(key), str) or (key in ids and type(entry[key]) is not int):
                self._note(key, number, entry, value)
        return image_id, category_id, box, area, crowd, ignored

    def _image_id(self, entry: dict[str, Any]) -> int | None:
        """The image's number; None where that image has a fault."""
        value = entry.get("image_id")
        image_id = self.images.number_of(value)
        if image_id in self._image_ids:
            return image_id
        if id_key(value) in self.images.refused:
            return None
        raise _FaultError("unknown_image", f"image_id {shorten(value)} is no id in images; add that image")

    def _category_id(self, entry: dict[str, Any]) -> int | None:
        """The same for its category."""
        value = entry.get("category_id")
        category_id = as_integer(value)
        if category_id in self._category_ids:
            return category_id
        if id_key(value) in self.categories.refused:
            return None
        known = shorten(self.categories.ids.tolist())
        raise _FaultError("unknown_category", f"category_id {shorten(value)} is none of {known}; add that category")

    def _note(self, key: str, number: int, entry: dict[str, Any], value: float) -> None:
        where = f"{self.path}: annotations[{number}]"
        self.mended.note(key, lambda: f"{where}: {key} {shorten(entry[key])} read as {value}")


class _FaultError(Exception):
    """What is wrong with an annotation and how to fix it, and the reason's name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _read_box(box: Any, *, keep_zero_area: bool) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise _FaultError("box_length", f"bbox {shorten(box)} is not [x, y, width, height]; write four numbers")
    for value in box:
        if type(value) is not int and type(value) is not float:
            raise _FaultError("not_numeric", f"bbox {shorten(box)} holds a value that is no number; write four numbers")
        if not -HUGE < value < HUGE:
            raise _FaultError(
                "not_finite", f"bbox {shorten(box)} holds NaN or an infinite or huge value; write it in px"
            )
    if box[2] < 0 or box[3] < 0:
        hint = "bbox is [x, y, width, height], not two corners"
        raise _FaultError("negative_size", f"bbox {shorten(box)} has a negative width or height ({hint}); fix it")
    if not keep_zero_area and (box[2] == 0 or box[3] == 0):
        raise _FaultError("zero_area", f"bbox {shorten(box)} has zero area; fix it")
    return box


def _read_area(value: Any) -> float | None:
    """None where it is not given."""
    area = as_number(value)
    if value is not None and (area is None or not 0 <= area < HUGE**2):
        raise _FaultError(
            "bad_area", f"area {shorten(value)} is no number >= 0; write it in px^2 or leave the field out"
        )
    return area


def _read_flag(entry: dict[str, Any], key: str) -> bool:
    """False where it is not there."""
    flag = as_flag(entry.get(key, 0))
    if flag is None:
        raise _FaultError(f"bad_{key}", f"{key} {shorten(entry[key])} is neither 0 nor 1; write one of them")
    return flag


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


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))
