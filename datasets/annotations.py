"""Read a COCO annotation file once, check every field, and keep it as flat numpy arrays."""

from __future__ import annotations

import json
import math
import os
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.structures import DataError

_HUGE = 1e9
"""px; no image is that large."""

BadAnnotationPolicy = Literal["error", "skip"]


@dataclass(frozen=True)
class AnnotationTable:
    """All images (I) and objects (N) of one COCO file; objects are grouped by image, in the file's order.

    path          the file, for messages
    categories    names, sorted by category id: label k is categories[k]
    image_ids     (I,)    int64
    file_names    (I,)    str, relative to the images' root
    sizes         (I, 2)  int64 (height, width), px
    first_object  (I+1,)  int64, objects of image i are first_object[i] : first_object[i + 1]
    boxes         (N, 4)  float64 xywh px, as in the file
    labels        (N,)    int64, 0..K-1
    areas         (N,)    float64 px^2, the `area` field or w*h
    crowd         (N,)    bool, `iscrowd`
    ignored       (N,)    bool, the `ignore` field of AI-TOD and mmdet
    skipped       bad annotations that were left out, counted by reason
    """

    path: Path
    categories: tuple[str, ...]
    image_ids: np.ndarray
    file_names: np.ndarray
    sizes: np.ndarray
    first_object: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    skipped: dict[str, int]


def read_annotations(
    path: Path, *, on_bad_annotation: BadAnnotationPolicy = "error", keep_zero_area: bool = False
) -> AnnotationTable:
    """Parse and check a COCO file.

    on_bad_annotation  "error": the first bad annotation is a DataError; "skip": leave it out and count it
    keep_zero_area     boxes of zero width or height are no fault (official evaluators count them)
    raises             DataError; faults outside `annotations` are errors under either policy
    """
    document = _load_json(path)
    categories, label_of = _read_categories(document["categories"], path)
    image_ids, file_names, sizes = _read_images(document["images"], path)
    position_of = {image_id: position for position, image_id in enumerate(image_ids)}
    table, skipped, first_fault = _read_objects(document["annotations"], position_of, label_of, keep_zero_area)
    if first_fault and on_bad_annotation == "error":
        raise DataError(
            f"{path}: {first_fault}, or set data.on_bad_annotation: skip to leave such annotations out "
            f"({sum(skipped.values())} of {len(document['annotations'])} are bad: {dict(skipped)})"
        )
    table = table[np.argsort(table[:, 0], kind="stable")]
    owner = table[:, 0].astype(np.int64)
    _check_box_convention(table[:, 2:6], sizes[owner], path)
    return AnnotationTable(
        path=path,
        categories=categories,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=np.array(file_names),
        sizes=sizes,
        first_object=np.searchsorted(owner, np.arange(len(image_ids) + 1)),
        boxes=table[:, 2:6].copy(),
        labels=table[:, 1].astype(np.int64),
        areas=table[:, 6].copy(),
        crowd=table[:, 7].astype(bool),
        ignored=table[:, 8].astype(bool),
        skipped=dict(skipped),
    )


def _load_json(path: Path) -> dict[str, list[Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        document = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; make or fetch the data set, or set data.root") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: invalid JSON at {place}: {error.msg}; write the file again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}; write the file again") from None
    keys = sorted(document) if isinstance(document, dict) else f"a {type(document).__name__}"
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(
                f"{path}: not a COCO detection file: no list {key!r}, found {_shorten(keys)}; "
                f"it needs the lists images, annotations and categories"
            )
    return document


def _read_categories(entries: list[Any], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    names: dict[int, str] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: {_describe('categories', number, entry)}"
        category_id, name = _field(entry, "id", where), _field(entry, "name", where)
        if not _is_integer(category_id):
            raise DataError(f"{where}: id {_shorten(category_id)} is not an integer; number the categories")
        if int(category_id) in names or name in names.values():
            raise DataError(f"{where}: id {category_id} or name {_shorten(name)} appears twice; make both unique")
        names[int(category_id)] = str(name)
    if not names:
        raise DataError(f"{path}: categories is empty; list each class as {{id, name}}")
    ids = sorted(names)
    return tuple(names[i] for i in ids), {category_id: label for label, category_id in enumerate(ids)}


def _read_images(entries: list[Any], path: Path) -> tuple[list[int], list[str], np.ndarray]:
    if not entries:
        raise DataError(f"{path}: images is empty; there is nothing to train on or to evaluate")
    first: dict[int, int] = {}
    names, sizes = [], []
    for number, entry in enumerate(entries):
        where = f"{path}: {_describe('images', number, entry)}"
        image_id, name = _field(entry, "id", where), _field(entry, "file_name", where)
        size = (_field(entry, "height", where), _field(entry, "width", where))
        if not _is_integer(image_id) or not 0 <= image_id < 2**63:
            raise DataError(f"{where}: id {_shorten(image_id)} is not an integer >= 0; number the images")
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{where}: file_name {_shorten(name)} is not a file name; write a relative path")
        if os.path.isabs(name) or Path(os.path.normpath(name)).parts[:1] == ("..",):
            raise DataError(
                f"{where}: file_name {_shorten(name)} leads out of the images folder; write it "
                f"relative to that folder, and move the folder by data.root"
            )
        for key, value in zip(("height", "width"), size, strict=True):
            if not _is_integer(value) or not 1 <= value < 2**31:
                raise DataError(f"{where}: {key} {_shorten(value)} is not a size in px >= 1; write the image's own")
        if image_id in first:
            raise DataError(f"{where}: id {image_id} is also that of images[{first[image_id]}]; make ids unique")
        first[int(image_id)] = number
        names.append(name)
        sizes.append(size)
    return list(first), names, np.array(sizes, dtype=np.int64)


def _read_objects(
    entries: list[Any], position_of: dict[int, int], label_of: dict[int, int], keep_zero_area: bool
) -> tuple[np.ndarray, Counter[str], str]:
    """-> sound annotations (N, 9): image, label, x, y, w, h, area, crowd, ignored; bad ones by reason; the first."""
    rows = array("d")
    skipped: Counter[str] = Counter()
    first_fault = ""
    for number, entry in enumerate(entries):
        fault = _find_fault(entry, position_of, label_of, keep_zero_area)
        if fault is None:
            box, area = entry["bbox"], entry.get("area")
            rows.append(position_of[entry["image_id"]])
            rows.append(label_of[entry["category_id"]])
            rows.extend(box)
            rows.append(box[2] * box[3] if area is None else area)
            rows.append(entry.get("iscrowd", 0))
            rows.append(bool(entry.get("ignore", False)))
        else:
            reason, detail = fault
            skipped[reason] += 1
            first_fault = first_fault or f"{_describe('annotations', number, entry)}: {detail}"
    return np.array(rows, dtype=np.float64).reshape(-1, 9), skipped, first_fault


def _find_fault(
    entry: Any, position_of: dict[int, int], label_of: dict[int, int], keep_zero_area: bool
) -> tuple[str, str] | None:
    """(reason, what is wrong and how to mend it), or None for a sound annotation."""
    if not isinstance(entry, dict):
        return "not_an_object", "is not a JSON object; write {image_id, category_id, bbox}"
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not _is_integer(image_id) or image_id not in position_of:
        return "unknown_image", f"image_id {_shorten(image_id)} is no id in images; add that image"
    if not _is_integer(category_id) or category_id not in label_of:
        known = _shorten(sorted(label_of))
        return (
            "unknown_category",
            f"category_id {_shorten(category_id)} is none of {known}; add that category",
        )
    box, area = entry.get("bbox"), entry.get("area")
    if not isinstance(box, list) or len(box) != 4:
        return "box_length", f"bbox {_shorten(box)} is not [x, y, width, height]; write four numbers"
    for value in box:
        if type(value) is not int and type(value) is not float:
            return "not_numeric", f"bbox {_shorten(box)} holds a value that is no number; write four numbers"
        if not -_HUGE < value < _HUGE:
            return "not_finite", f"bbox {_shorten(box)} holds NaN or an infinite or huge value; write it in px"
    if box[2] < 0 or box[3] < 0:
        hint = "bbox is [x, y, width, height], not two corners"
        return "negative_size", f"bbox {_shorten(box)} has a negative width or height ({hint}); mend it"
    if not keep_zero_area and (box[2] == 0 or box[3] == 0):
        return "zero_area", f"bbox {_shorten(box)} has zero area; fix it"
    if area is not None and not (type(area) in (int, float) and 0 <= area < math.inf):
        return "bad_area", f"area {_shorten(area)} is no number >= 0; write it in px^2 or leave the field out"
    if entry.get("iscrowd", 0) not in (0, 1):
        return "bad_iscrowd", f"iscrowd {_shorten(entry['iscrowd'])} is neither 0 nor 1; write one of them"
    return None


def _check_box_convention(boxes: np.ndarray, sizes: np.ndarray, path: Path) -> None:
    """Refuse files whose boxes as a whole look like corners or like fractions of the image."""
    if len(boxes) < 5:
        return
    if (boxes <= 1).all():
        raise DataError(
            f"{path}: annotations: no bbox value is above 1 (the first is {boxes[0].tolist()}): "
            f"normalised boxes? Multiply them by the image's width and height"
        )
    xy, wh = boxes[:, :2], boxes[:, 2:]
    outside = (xy + wh > sizes[:, ::-1] + 1).any(axis=1)
    if (wh > xy).all() and outside.mean() > 0.5:
        raise DataError(
            f"{path}: annotations: {outside.sum()} of {len(boxes)} boxes leave their image (the first is "
            f"{boxes[0].tolist()}): x1, y1, x2, y2 written as x, y, width, height? "
            f"Write [x1, y1, x2 - x1, y2 - y1]"
        )


def _is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{where}: has no field {key!r}; add it (found {_shorten(entry)})")
    return entry[key]


def _describe(section: str, number: int, entry: Any) -> str:
    known = f" (id {_shorten(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
    return f"{section}[{number}]{known}"


def _shorten(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) and value.startswith("a ") else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
