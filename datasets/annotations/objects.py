"""Annotations checked field by field: a sound one becomes an object, any other a finding; and their ids."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations.columns import HUGE, IDS, ObjectColumns
from datasets.annotations.json_stream import as_flag, as_integer, as_number, describe, id_key, shorten
from datasets.annotations.validation import Categories, Fixes, Images
from datasets.findings import Findings, Severity

SKIP_HINT = "or set data.on_bad_annotation: skip to skip such annotations"


class EntryReader:
    """Reads annotations field by field; values written in another form, such as "3" for 3, are noted in `fixes`.

    Entries of an image or a category that has a fault of its own are dropped without a further finding.

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
        self.fixes = Fixes()
        self._image_ids = frozenset(images.ids.tolist())
        self._category_ids = frozenset(categories.ids.tolist())

    def read(self, entries: Iterable[tuple[int, Any]]) -> tuple[np.ndarray, ObjectColumns]:
        """Numbers in the file and objects of the sound ones of these (number, entry); the others are findings."""
        numbers, rows = [], []
        for number, entry in entries:
            try:
                row = self._row(number, entry)
            except _FaultError as fault:
                where = f"{self.path}: {describe('annotations', number, entry)}"
                self.findings.add(self.severity, fault.reason, f"{where}: {fault}", hint=SKIP_HINT)
                continue
            if row is not None:
                numbers.append(number)
                rows.append(row)
        image_ids, category_ids, boxes, areas, crowd, ignored = zip(*rows, strict=True) if rows else ((),) * 6
        return np.array(numbers, dtype=np.int64), ObjectColumns(
            image_ids=np.array(image_ids, dtype=np.int64),
            category_ids=np.array(category_ids, dtype=np.int64),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=np.bool_),
            ignored=np.array(ignored, dtype=np.bool_),
        )

    def _row(self, number: int, entry: Any) -> tuple[Any, ...] | None:
        """Values in the order of ObjectColumns; None if the entry's image or category has a fault of its own."""
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
        """The image's number; None if that image has a fault."""
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
        self.fixes.note(key, lambda: f"{where}: {key} {shorten(entry[key])} read as {value}")


class _FaultError(Exception):
    """Fault of an annotation with its remedy; `reason` is its short name."""

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
    """None without a value."""
    area = as_number(value)
    if value is not None and (area is None or not 0 <= area < HUGE**2):
        raise _FaultError("bad_area", f"area {shorten(value)} is no number >= 0; write it in px^2 or omit the field")
    return area


def _read_flag(entry: dict[str, Any], key: str) -> bool:
    """False without the field."""
    flag = as_flag(entry.get(key, 0))
    if flag is None:
        raise _FaultError(f"bad_{key}", f"{key} {shorten(entry[key])} is neither 0 nor 1; write one of them")
    return flag


class AnnotationIds:
    """Ids of all annotations, and how many entries lack a field; block by block.

    Nothing here uses the ids, but other tools fail on repeated ones.
    """

    def __init__(self) -> None:
        self._ids = array("q")
        self._lacking: Counter[str] = Counter()

    def add(self, entries: list[Any]) -> None:
        objects = entries if set(map(type, entries)) == {dict} else [e if isinstance(e, dict) else {} for e in entries]
        ids: list[Any] = [entry.get("id") for entry in objects]
        self._lacking["area"] += [entry.get("area") for entry in objects].count(None)
        self._lacking["iscrowd"] += ["iscrowd" in entry for entry in objects].count(False)
        if set(map(type, ids)) != {int} or min(ids) not in IDS or max(ids) not in IDS:
            ids = self._numbered(ids)
        self._ids.extend(ids)

    def _numbered(self, ids: list[Any]) -> list[int]:
        """Replace each id that is no integer of 63 bits by an unused one, far below all others."""
        spare = -(2**63) + len(self._ids)
        usable = [type(value) is int and value in IDS for value in ids]
        self._lacking["id"] += usable.count(False)
        return [value if good else spare + i for i, (value, good) in enumerate(zip(ids, usable, strict=True))]

    def __getitem__(self, number: int) -> int | None:
        """Id of an annotation of the file; None for a missing or unusable one."""
        value = self._ids[number]
        return value if value in IDS else None

    def report(self, path: Path, findings: Findings, *, renumber: bool) -> None:
        """renumber   renumber repeated ids in memory instead of refusing them"""
        ids = np.frombuffer(self._ids, dtype=np.int64)
        for key, what in (("id", "numbered"), ("area", "width times height"), ("iscrowd", "0")):
            if self._lacking[key]:
                message = f"{path}: {self._lacking[key]} annotations without {key}: {what}"
                findings.add("fixed", f"no_{key}", message, count=self._lacking[key])
        if zeros := int((ids == 0).sum()):
            message = f"{path}: annotation id 0, which pycocotools takes for no match: renumbered from 1 in memory"
            findings.add("fixed", "id_zero", message, count=zeros)
        if (np.diff(ids) > 0).all():
            return
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if renumber and len(again):
            message = f"{path}: {len(again)} annotations repeat an earlier id: renumbered from 1 in memory"
            findings.add("fixed", "repeated_id", message, count=len(again))
            return
        first = dict(zip(ids[order[::-1]].tolist(), order[::-1].tolist(), strict=True)) if len(again) else {}
        for number in np.sort(again).tolist():
            value = int(ids[number])
            message = (
                f"{path}: {describe('annotations', number, {'id': value})}: is also the id of "
                f"annotations[{first[value]}]; renumber them (other tools lose objects)"
            )
            findings.add(
                "error", "repeated_id", message, hint="or set data.on_bad_annotation: skip to renumber them in memory"
            )
