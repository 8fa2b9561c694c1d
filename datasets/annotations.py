"""Read a COCO annotation file once, check every field, and keep it as flat numpy arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.annotation_columns import (
    ColumnsBuilder,
    Faults,
    ObjectColumns,
    describe,
    is_integer,
    shorten,
    sound_columns,
    to_columns,
)
from datasets.json_blocks import InvalidJSONError, read_object
from datasets.packed_strings import PackedStrings
from datasets.structures import DataError

BadAnnotationPolicy = Literal["error", "skip"]


@dataclass(frozen=True)
class AnnotationTable:
    """All images (I) and objects (N) of one COCO file; objects are grouped by image, in the file's order.

    path          the file, for messages
    categories    names, sorted by category id: label k is categories[k]
    image_ids     (I,)    int64
    file_names    I strings, relative to the images' root
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
    file_names: PackedStrings
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
    collected = _Collector(keep_zero_area=keep_zero_area)
    document = _load_json(path, {"annotations": collected.add})
    categories, category_ids = _read_categories(document["categories"], path)
    image_ids, file_names, sizes = _read_images(document["images"], path)
    del document
    objects, skipped = _read_objects(
        collected,
        path,
        image_ids=image_ids,
        category_ids=category_ids,
        on_bad_annotation=on_bad_annotation,
        keep_zero_area=keep_zero_area,
    )
    owner = _positions(objects.image_ids, image_ids)
    if (owner[1:] < owner[:-1]).any():
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        objects.reorder(order)
    _check_box_convention(objects.boxes, sizes, owner, path)
    return AnnotationTable(
        path=path,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        first_object=np.searchsorted(owner, np.arange(len(image_ids) + 1)),
        boxes=objects.boxes,
        labels=_positions(objects.category_ids, category_ids),
        areas=objects.areas,
        crowd=objects.crowd,
        ignored=objects.ignored,
        skipped=skipped,
    )


class _Collector:
    """Takes the annotations block by block; keeps nothing once a block is not plainly sound."""

    def __init__(self, *, keep_zero_area: bool) -> None:
        self.keep_zero_area = keep_zero_area
        self.builder, self.total, self.plain = ColumnsBuilder(), 0, True

    def add(self, entries: list[Any]) -> None:
        self.total += len(entries)
        columns = to_columns(entries, keep_zero_area=self.keep_zero_area) if self.plain else None
        if columns is None:
            self.builder, self.plain = ColumnsBuilder(), False
        else:
            self.builder.add(columns)


def _load_json(path: Path, consumers: Mapping[str, Callable[[list[Any]], None]]) -> dict[str, Any]:
    try:
        document = read_object(path, consumers)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; make or fetch the data set, or set data.root") from None
    except InvalidJSONError as error:
        raise DataError(f"{path}: invalid JSON at {error}; write the file again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}; write the file again") from None
    keys = sorted(document) if isinstance(document, dict) else f"a {type(document).__name__}"
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(
                f"{path}: not a COCO detection file: no list {key!r}, found {shorten(keys)}; "
                f"it needs the lists images, annotations and categories"
            )
    return document


def _read_categories(entries: list[Any], path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and ids, both by ascending id."""
    names: dict[int, str] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: {describe('categories', number, entry)}"
        category_id, name = _field(entry, "id", where), _field(entry, "name", where)
        if not is_integer(category_id) or not -(2**63) <= category_id < 2**63:
            raise DataError(f"{where}: id {shorten(category_id)} is not an integer; number the categories")
        if int(category_id) in names or name in names.values():
            raise DataError(f"{where}: id {category_id} or name {shorten(name)} appears twice; make both unique")
        names[int(category_id)] = str(name)
    if not names:
        raise DataError(f"{path}: categories is empty; list each class as {{id, name}}")
    ids = sorted(names)
    return tuple(names[i] for i in ids), np.array(ids, dtype=np.int64)


def _read_images(entries: list[Any], path: Path) -> tuple[np.ndarray, PackedStrings, np.ndarray]:
    if not entries:
        raise DataError(f"{path}: images is empty; there is nothing to train on or to evaluate")
    first: dict[int, int] = {}
    names, sizes = [], []
    for number, entry in enumerate(entries):
        where = f"{path}: {describe('images', number, entry)}"
        image_id, name = _field(entry, "id", where), _field(entry, "file_name", where)
        size = (_field(entry, "height", where), _field(entry, "width", where))
        if not is_integer(image_id) or not 0 <= image_id < 2**63:
            raise DataError(f"{where}: id {shorten(image_id)} is not an integer >= 0; number the images")
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{where}: file_name {shorten(name)} is not a file name; write a relative path")
        if os.path.isabs(name) or (".." in name and Path(os.path.normpath(name)).parts[:1] == ("..",)):
            raise DataError(
                f"{where}: file_name {shorten(name)} leads out of the images folder; write it "
                f"relative to that folder, and move the folder by data.root"
            )
        for key, value in zip(("height", "width"), size, strict=True):
            if not is_integer(value) or not 1 <= value < 2**31:
                raise DataError(f"{where}: {key} {shorten(value)} is not a size in px >= 1; write the image's own")
        if image_id in first:
            raise DataError(f"{where}: id {image_id} is also that of images[{first[image_id]}]; make ids unique")
        first[int(image_id)] = number
        names.append(name)
        sizes.append(size)
    return np.array(list(first), dtype=np.int64), PackedStrings.of(names), np.array(sizes, dtype=np.int64)


def _read_objects(
    collected: _Collector,
    path: Path,
    *,
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    on_bad_annotation: BadAnnotationPolicy,
    keep_zero_area: bool,
) -> tuple[ObjectColumns, dict[str, int]]:
    """Sound objects and the number of others by reason; a file that is not plainly sound is read a second time."""
    if collected.plain:
        columns = collected.builder.finish()
        if np.isin(columns.image_ids, image_ids).all() and np.isin(columns.category_ids, category_ids).all():
            return columns, {}
        del columns
    faults, numbers, builder = Faults(), itertools.count(), ColumnsBuilder()
    known_images, known_categories = set(image_ids.tolist()), set(category_ids.tolist())

    def check(entries: list[Any]) -> None:
        sound = sound_columns(
            zip(numbers, entries, strict=False),
            faults,
            image_ids=known_images,
            category_ids=known_categories,
            keep_zero_area=keep_zero_area,
        )
        builder.add(sound)

    _load_json(path, {"annotations": check})
    if faults.first and on_bad_annotation == "error":
        raise DataError(
            f"{path}: {faults.first}, or set data.on_bad_annotation: skip to leave such annotations out "
            f"({faults.counts.total()} of {collected.total} are bad: {dict(faults.counts)})"
        )
    return builder.finish(), dict(faults.counts)


def _positions(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Index of each id in `known`, which has all of them."""
    low, high = int(known.min()), int(known.max())
    if high - low < len(ids):  # a table is no larger than the ids, and ten times faster than a search at random
        table = np.empty(high - low + 1, dtype=np.int64)
        table[known - low] = np.arange(len(known))
        return table[ids - low]
    order = np.argsort(known)
    return order[np.searchsorted(known[order], ids)]


def _check_box_convention(boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray, path: Path) -> None:
    """Refuse files whose boxes as a whole look like corners or like fractions of the image.

    boxes (N, 4) xywh px, sizes (I, 2) height, width of the images, owner (N,) the image of each box
    """
    if len(boxes) < 5:
        return
    if (boxes <= 1).all():
        raise DataError(
            f"{path}: annotations: no bbox value is above 1 (the first is {boxes[0].tolist()}): "
            f"normalised boxes? Multiply them by the image's width and height"
        )
    xy, wh = boxes[:, :2], boxes[:, 2:]
    if not (wh > xy).all():
        return
    outside = (xy + wh > sizes[owner, ::-1] + 1).any(axis=1)
    if outside.mean() > 0.5:
        raise DataError(
            f"{path}: annotations: {outside.sum()} of {len(boxes)} boxes leave their image (the first is "
            f"{boxes[0].tolist()}): x1, y1, x2, y2 written as x, y, width, height? "
            f"Write [x1, y1, x2 - x1, y2 - y1]"
        )


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{where}: has no field {key!r}; add it (found {shorten(entry)})")
    return entry[key]
