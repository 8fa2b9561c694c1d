"""Read a COCO annotation file once, check every field, and keep it as flat numpy arrays."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.annotations.columns import ColumnsBuilder, DoubtfulEntries, ObjectColumns, PackedStrings, to_columns
from datasets.annotations.json_stream import (
    Consumer,
    InvalidJSONError,
    id_key,
    read_object,
    shorten,
    without_garbage_collection,
)
from datasets.annotations.objects import AnnotationIds, EntryReader
from datasets.annotations.plausibility import check_areas, check_box_convention, count_repeats, recompute_zero_areas
from datasets.annotations.validation import Categories, Images, read_categories, read_images
from datasets.errors import DataError
from datasets.findings import Findings
from datasets.images.hints import hint_for_path

BadAnnotationPolicy = Literal["error", "skip"]
PIECE = 64
"""Annotations that a faulty block is cut into, so that only those near a fault are checked field by field."""
BLOCK = 10_000
"""Annotations checked field by field at a time."""


@dataclass(frozen=True)
class AnnotationTable:
    """All images (I) and objects (N) of one COCO file; objects are grouped by image, in the file's order.

    path          the file, for messages
    categories    names, sorted by category id: label k is categories[k]
    category_ids  their ids in the file
    parents       names of categories without objects that are no classes but the supercategory of others
    all_sound     whether no entry of categories has a fault
    image_ids     (I,)    int64, the file's own, or numbers in the place of names
    file_names    I strings, relative to the images' root
    sizes         (I, 2)  int64 (height, width), px
    first_object  (I+1,)  int64, objects of image i are first_object[i] : first_object[i + 1]
    boxes         (N, 4)  float64 xywh px, as in the file
    labels        (N,)    int64, 0..K-1
    areas         (N,)    float64 px^2, the `area` field, or w*h where it is missing or 0
    crowd         (N,)    bool, `iscrowd`
    ignored       (N,)    bool, the `ignore` field of AI-TOD and mmdet
    skipped       skipped annotations, counted by reason
    fixed         what was fixed in memory, counted by reason
    warnings      suspicious findings, a line each
    """

    path: Path
    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    parents: tuple[str, ...]
    all_sound: bool
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

    def describe_parents(self) -> str:
        """Part of a message that names the categories of the file."""
        if not self.parents:
            return ""
        return f" without {list(self.parents[:10])} (no objects, only the supercategory of others)"


def read_annotations(
    path: Path,
    *,
    on_bad_annotation: BadAnnotationPolicy = "error",
    keep_zero_area: bool = False,
    recompute_area: bool = True,
    num_classes: int | None = None,
    findings: Findings | None = None,
) -> AnnotationTable:
    """Parse and check a COCO file. Raises DataError; faults outside `annotations` are errors under either policy.

    on_bad_annotation  "error": bad annotations are errors; "skip": skip and count them
    keep_zero_area     accept boxes of zero width or height (official evaluators count them)
    recompute_area     replace an `area` of 0 beside a sound box by width x height; False to compare with pycocotools
    num_classes        of the model, which decides whether categories that are only the parents of others are classes
    findings           collects all findings, and the sound rest is returned; without it, errors are raised
    """
    found = Findings() if findings is None else findings
    collected = _Collector(keep_zero_area=keep_zero_area)
    categories, images = _read_file(path, collected, found, num_classes=num_classes, stop=findings is None)
    objects = _read_objects(collected, path, images, categories, found, skip=on_bad_annotation == "skip")
    collected.ids.report(path, found, renumber=on_bad_annotation == "skip")
    objects, owner = _group_by_image(objects, images)
    labels = _positions(objects.category_ids, categories.ids)
    if recompute_area:
        recompute_zero_areas(objects, path, found)
    check_areas(objects, path, found)
    check_box_convention(objects.boxes, images.sizes, owner, path, found)
    count_repeats(objects.boxes, labels, owner, path, found)
    if findings is None:
        found.raise_errors()
    return AnnotationTable(
        path=path,
        categories=categories.names,
        category_ids=tuple(categories.ids.tolist()),
        parents=categories.parents,
        all_sound=not found.counts("error").get("bad_categories"),
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
    """Takes annotations block by block: sound ones become columns, doubtful ones wait until all ids are known."""

    def __init__(self, *, keep_zero_area: bool) -> None:
        self.keep_zero_area = keep_zero_area
        self.builder, self.doubtful, self.ids = ColumnsBuilder(), DoubtfulEntries(), AnnotationIds()
        self.category_keys: set[Hashable] = set()
        self._count = 0
        self._sound: list[tuple[int, int]] = []  # first number and end of each run of sound entries

    def add(self, entries: list[Any]) -> None:
        self.ids.add(entries)
        self._add_block(self._count, entries)
        self._count += len(entries)

    def _add_block(self, start: int, entries: list[Any]) -> None:
        columns = to_columns(entries, keep_zero_area=self.keep_zero_area)
        if columns is not None:
            self.builder.add(columns)
            self.category_keys.update(np.unique(columns.category_ids).tolist())
            follows = bool(self._sound) and self._sound[-1][1] == start
            first = self._sound.pop()[0] if follows else start
            self._sound.append((first, start + len(entries)))
        elif len(entries) > PIECE:
            for place in range(0, len(entries), PIECE):
                self._add_block(start + place, entries[place : place + PIECE])
        else:
            self.doubtful.add(start, entries)
            self.category_keys.update(id_key(entry.get("category_id")) for entry in entries if isinstance(entry, dict))

    def numbers(self) -> np.ndarray:
        """(N,) int64, the sound objects' numbers in the file."""
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, end) for start, end in self._sound)])

    def entries_at(self, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Number in the file and entry of these sound objects; holds no view of the columns."""
        objects, numbers = self.builder.view(), self.numbers()[rows]
        return _to_entries(numbers, self.ids, objects.image_ids[rows], objects.category_ids[rows], objects.boxes[rows])


def _to_entries(
    numbers: np.ndarray, ids: AnnotationIds, image_ids: np.ndarray, category_ids: np.ndarray, boxes: np.ndarray
) -> Iterator[tuple[int, Any]]:
    for row, number in enumerate(numbers.tolist()):
        entry = {"image_id": int(image_ids[row]), "category_id": int(category_ids[row]), "bbox": boxes[row].tolist()}
        annotation_id = ids[number]
        yield number, entry if annotation_id is None else {"id": annotation_id} | entry


def _load_json(path: Path, consumer: Consumer) -> dict[str, Any]:
    """Read everything except the annotations, which go to the consumer."""
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
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            keys = shorten(sorted(document)) if isinstance(document, dict) else f"a {type(document).__name__}"
            raise DataError(
                f"{path}: not a COCO detection file: no list {key!r}, found {keys}; "
                f"it needs the lists images, annotations and categories"
            )
    return document


def _read_objects(
    collected: _Collector, path: Path, images: Images, categories: Categories, findings: Findings, *, skip: bool
) -> ObjectColumns:
    """Sound objects of sound images and categories, in the file's order; every other annotation is a finding."""
    known = _find_known(collected.builder.view(), images, categories)
    if known.all() and not collected.doubtful:
        return collected.builder.view()
    reader = EntryReader(
        images,
        categories,
        findings,
        path=path,
        severity="skipped" if skip else "error",
        keep_zero_area=collected.keep_zero_area,
    )
    numbers = [collected.numbers()]
    suspects = heapq.merge(collected.doubtful, collected.entries_at(np.flatnonzero(~known)), key=itemgetter(0))
    with without_garbage_collection():
        while block := list(islice(suspects, BLOCK)):
            accepted, objects = reader.read(block)
            numbers.append(accepted)
            collected.builder.add(objects)
    reader.fixes.report(findings)
    order = np.argsort(np.concatenate(numbers))
    sound = np.concatenate([known, np.ones(len(order) - len(known), dtype=bool)])
    return collected.builder.view().reorder(order[sound[order]])


def _find_known(objects: ObjectColumns, images: Images, categories: Categories) -> np.ndarray:
    """(N,) bool: image and category are sound entries. A number that replaces a name is no id of an image."""
    own = np.setdiff1d(images.ids, np.array(list(images.named.values()), dtype=np.int64))
    return np.asarray(np.isin(objects.image_ids, own) & np.isin(objects.category_ids, categories.ids))


def _read_file(
    path: Path, collected: _Collector, findings: Findings, *, num_classes: int | None, stop: bool
) -> tuple[Categories, Images]:
    """Pass over the file: annotations go to `collected`, images and categories are returned.

    Raises DataError without a sound image or category, with all errors so far if `stop`.
    """
    document = _load_json(path, collected.add)
    categories = read_categories(
        document["categories"], path, findings, used=collected.category_keys, num_classes=num_classes
    )
    images = read_images(document["images"], path, findings)
    if stop and (len(categories.ids) == 0 or len(images.ids) == 0):
        findings.raise_errors()
    for key, ids, remedy in (
        ("categories", categories.ids, "list each class as {id, name}"),
        ("images", images.ids, "there is nothing to train on or to evaluate"),
    ):
        if len(ids) == 0:
            fault = f"no entry of {key} is sound; fix them first" if document[key] else f"{key} is empty; {remedy}"
            raise DataError(f"{path}: {fault}")
    return categories, images


def _group_by_image(objects: ObjectColumns, images: Images) -> tuple[ObjectColumns, np.ndarray]:
    """Objects in the order of their images, otherwise in the file's, and the place (N,) of the image of each."""
    owner = _positions(objects.image_ids, images.ids)
    if (np.diff(owner) >= 0).all():
        return objects, owner
    order = np.argsort(owner, kind="stable")
    return objects.reorder(order), owner[order]


def _positions(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Index of each id in `known`, which contains all of them."""
    low, high = int(known.min()), int(known.max())
    if high - low < len(ids):  # a table is no larger than the ids, and ten times faster than a search at random
        table = np.empty(high - low + 1, dtype=np.int64)
        table[known - low] = np.arange(len(known))
        return table[ids - low]
    order = np.argsort(known)
    return order[np.searchsorted(known[order], ids)]
