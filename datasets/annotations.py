"""Read a COCO annotation file once, check every field, and keep it as flat numpy arrays."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.annotation_columns import ColumnsBuilder, Known, ObjectColumns, shorten, sound_columns, to_columns
from datasets.annotation_entries import Categories, Images, read_categories, read_images
from datasets.annotation_ids import AnnotationIds
from datasets.findings import Findings
from datasets.json_blocks import Consumer, InvalidJSONError, read_object
from datasets.name_hints import hint_for_path
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
    fixed         what was mended in memory, counted by reason
    warnings      what is odd, a line each
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
    fixed: dict[str, int]
    warnings: tuple[str, ...]


def read_annotations(
    path: Path,
    *,
    on_bad_annotation: BadAnnotationPolicy = "error",
    keep_zero_area: bool = False,
    findings: Findings | None = None,
) -> AnnotationTable:
    """Parse and check a COCO file.

    on_bad_annotation  "error": bad annotations are errors; "skip": leave them out and count them
    keep_zero_area     boxes of zero width or height are no fault (official evaluators count them)
    findings           gets all that is found, errors too, and what is left comes back; without one they are raised
    raises             DataError; faults outside `annotations` are errors under either policy
    """
    found = Findings() if findings is None else findings
    collected = _Collector(keep_zero_area=keep_zero_area)
    document = _load_json(path, collected.add)
    categories = read_categories(document["categories"], path, found)
    images = read_images(document["images"], path, found)
    del document
    if findings is None and (len(categories.ids) == 0 or len(images.ids) == 0):
        found.raise_errors()
    if len(categories.ids) == 0:
        raise DataError(f"{path}: categories is empty; list each class as {{id, name}}")
    if len(images.ids) == 0:
        raise DataError(f"{path}: images is empty; there is nothing to train on or to evaluate")
    objects = _read_objects(collected, path, images, categories, found, skip=on_bad_annotation == "skip")
    collected.ids.report(path, found, renumber=on_bad_annotation == "skip")
    owner = _positions(objects.image_ids, images.ids)
    if (np.diff(owner) < 0).any():
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        objects.reorder(order)
    labels = _positions(objects.category_ids, categories.ids)
    _check_box_convention(objects.boxes, images.sizes, owner, path, found)
    _count_repeats(objects.boxes, labels, owner, path, found)
    if findings is None:
        found.raise_errors()
    return AnnotationTable(
        path=path,
        categories=categories.names,
        image_ids=images.ids,
        file_names=images.file_names,
        sizes=images.sizes,
        first_object=np.searchsorted(owner, np.arange(len(images.ids) + 1)),
        boxes=objects.boxes,
        labels=labels,
        areas=objects.areas,
        crowd=objects.crowd,
        ignored=objects.ignored,
        skipped=found.counts("skipped"),
        fixed=found.counts("fixed"),
        warnings=tuple(found.messages("warning")),
    )


class _Collector:
    """Takes the annotations block by block; keeps nothing of their boxes once a block is not plainly sound."""

    def __init__(self, *, keep_zero_area: bool) -> None:
        self.keep_zero_area = keep_zero_area
        self.builder, self.plain, self.ids = ColumnsBuilder(), True, AnnotationIds()

    def add(self, entries: list[Any]) -> None:
        self.ids.add(entries)
        columns = to_columns(entries, keep_zero_area=self.keep_zero_area) if self.plain else None
        if columns is None:
            self.builder, self.plain = ColumnsBuilder(), False
        else:
            self.builder.add(columns)


def _load_json(path: Path, consumer: Consumer) -> dict[str, Any]:
    """All but the annotations, which go to the consumer."""
    try:
        document = read_object(path, {"annotations": consumer})
    except FileNotFoundError:
        hint = hint_for_path(path, folder=False, endings=(".json",))
        raise DataError(
            f"{path}: no such annotation file; {hint}make or fetch the data set, or set data.root"
        ) from None
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


def _read_objects(
    collected: _Collector, path: Path, images: Images, categories: Categories, findings: Findings, *, skip: bool
) -> ObjectColumns:
    """Sound objects of sound images; a file that is not plainly sound is read a second time."""
    if collected.plain:
        columns = collected.builder.finish()
        known = np.isin(columns.image_ids, images.ids).all() and np.isin(columns.category_ids, categories.ids).all()
        if known:
            return columns
        del columns
    numbers, builder = itertools.count(), ColumnsBuilder()
    known_ids = Known(images.refused.union(images.ids.tolist()), categories.refused.union(categories.ids.tolist()))

    def check(entries: list[Any]) -> None:
        sound = sound_columns(
            zip(numbers, entries, strict=False),
            known_ids,
            findings,
            path=path,
            severity="skipped" if skip else "error",
            keep_zero_area=collected.keep_zero_area,
        )
        # What belongs to an image or category with a fault of its own is no further finding.
        whole = np.isin(sound.image_ids, images.ids) & np.isin(sound.category_ids, categories.ids)
        builder.add(sound if whole.all() else sound.select(whole))

    _load_json(path, check)
    return builder.finish()


def _positions(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Index of each id in `known`, which has all of them."""
    low, high = int(known.min()), int(known.max())
    if high - low < len(ids):  # a table is no larger than the ids, and ten times faster than a search at random
        table = np.empty(high - low + 1, dtype=np.int64)
        table[known - low] = np.arange(len(known))
        return table[ids - low]
    order = np.argsort(known)
    return order[np.searchsorted(known[order], ids)]


def _check_box_convention(
    boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray, path: Path, findings: Findings
) -> None:
    """Refuse files whose boxes as a whole look like corners or like fractions of the image.

    boxes (N, 4) xywh px, sizes (I, 2) height, width of the images, owner (N,) the image of each box
    """
    if len(boxes) < 5:
        return
    if (boxes <= 1).all():
        message = (
            f"{path}: annotations: no bbox value is above 1 (the first is {boxes[0].tolist()}): normalised boxes? "
            "Multiply them by the image's width and height"
        )
        findings.add("error", "normalised_boxes", message)
    xy, wh = boxes[:, :2], boxes[:, 2:]
    if not (wh > xy).all():
        return
    outside = (xy + wh > sizes[owner, ::-1] + 1).any(axis=1)
    if outside.mean() > 0.5:
        message = (
            f"{path}: annotations: {outside.sum()} of {len(boxes)} boxes leave their image (the first is "
            f"{boxes[0].tolist()}): x1, y1, x2, y2 written as x, y, width, height? Write [x1, y1, x2 - x1, y2 - y1]"
        )
        findings.add("error", "corner_boxes", message)


def _count_repeats(boxes: np.ndarray, labels: np.ndarray, owner: np.ndarray, path: Path, findings: Findings) -> None:
    """A warning that counts objects with image, class and box of another one."""
    columns: list[np.ndarray] = [*boxes.view(np.uint64).T, labels.astype(np.uint64), owner.astype(np.uint64)]
    mixed = np.zeros(len(boxes), dtype=np.uint64)
    for column in columns:  # equal objects have equal numbers, others hardly ever
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    near = np.nonzero(mixed[order[1:]] == mixed[order[:-1]])[0]
    later, earlier = order[near + 1], order[near]
    repeated = later[np.all([column[later] == column[earlier] for column in columns], axis=0)]
    if len(repeated):
        first = boxes[repeated[0]].tolist()
        message = (
            f"{path}: annotations: {len(repeated)} objects repeat another one of their image exactly, such as bbox "
            f"{first}; remove them unless they are meant"
        )
        findings.add("warning", "repeated_object", message, count=len(repeated))
