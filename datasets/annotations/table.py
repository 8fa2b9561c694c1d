"""Read a COCO annotation file once, check every field, and keep it as flat numpy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.annotations.checks import check_areas, check_box_convention, count_repeats, recompute_zero_areas
from datasets.annotations.columns import ColumnsBuilder, EntryReader, ObjectColumns, to_columns
from datasets.annotations.ids import AnnotationIds
from datasets.annotations.json_stream import Consumer, InvalidJSONError, read_object
from datasets.annotations.packed_strings import PackedStrings
from datasets.annotations.validation import Categories, Images, read_categories, read_images
from datasets.annotations.values import id_key, shorten
from datasets.findings import Findings
from datasets.images.name_hints import hint_for_path
from datasets.structures import DataError

BadAnnotationPolicy = Literal["error", "skip"]


@dataclass(frozen=True)
class AnnotationTable:
    """All images (I) and objects (N) of one COCO file; objects are grouped by image, in the file's order.

    path          the file, for messages
    categories    names, sorted by category id: label k is categories[k]
    parents       names of categories without objects that are no classes but the supercategory of others
    all_sound     whether no entry of categories has a fault
    image_ids     (I,)    int64, the file's own, or numbers in the place of names
    file_names    I strings, relative to the images' root
    sizes         (I, 2)  int64 (height, width), px
    first_object  (I+1,)  int64, objects of image i are first_object[i] : first_object[i + 1]
    boxes         (N, 4)  float64 xywh px, as in the file
    labels        (N,)    int64, 0..K-1
    areas         (N,)    float64 px^2, the `area` field, or w*h where it is not there or 0
    crowd         (N,)    bool, `iscrowd`
    ignored       (N,)    bool, the `ignore` field of AI-TOD and mmdet
    skipped       bad annotations that were left out, counted by reason
    fixed         what was mended in memory, counted by reason
    warnings      what is odd, a line each
    """

    path: Path
    categories: tuple[str, ...]
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
    """Parse and check a COCO file.

    on_bad_annotation  "error": bad annotations are errors; "skip": leave them out and count them
    keep_zero_area     boxes of zero width or height are no fault (official evaluators count them)
    recompute_area     an `area` of 0 beside a sound box is width times height; False for comparisons with pycocotools
    num_classes        of the model, which decides whether categories that are only the parents of others are classes
    findings           gets all that is found, errors too, and what is left comes back; without one they are raised
    raises             DataError; faults outside `annotations` are errors under either policy
    """
    found = Findings() if findings is None else findings
    collected = _Collector(keep_zero_area=keep_zero_area)
    document = _load_json(path, collected.add)
    categories = read_categories(
        document["categories"], path, found, used=collected.category_keys, num_classes=num_classes
    )
    images = read_images(document["images"], path, found)
    if findings is None and (len(categories.ids) == 0 or len(images.ids) == 0):
        found.raise_errors()
    for key, ids, remedy in (
        ("categories", categories.ids, "list each class as {id, name}"),
        ("images", images.ids, "there is nothing to train on or to evaluate"),
    ):
        if len(ids) == 0:
            fault = f"no entry of {key} is sound; fix them first" if document[key] else f"{key} is empty; {remedy}"
            raise DataError(f"{path}: {fault}")
    del document
    objects = _read_objects(collected, path, images, categories, found, skip=on_bad_annotation == "skip")
    collected.ids.report(path, found, renumber=on_bad_annotation == "skip")
    owner = _positions(objects.image_ids, images.ids)
    if (np.diff(owner) < 0).any():
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        objects.reorder(order)
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
    """Takes the annotations block by block; keeps nothing of their boxes once a block is not plainly sound."""

    def __init__(self, *, keep_zero_area: bool) -> None:
        self.keep_zero_area = keep_zero_area
        self.builder, self.plain, self.ids = ColumnsBuilder(), True, AnnotationIds()
        self.category_keys: set[Hashable] = set()

    def add(self, entries: list[Any]) -> None:
        self.ids.add(entries)
        columns = to_columns(entries, keep_zero_area=self.keep_zero_area) if self.plain else None
        if columns is None:
            self.builder, self.plain = ColumnsBuilder(), False
            self.category_keys.update(id_key(entry.get("category_id")) for entry in entries if isinstance(entry, dict))
        else:
            self.builder.add(columns)
            self.category_keys.update(np.unique(columns.category_ids).tolist())


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
    """Sound objects of sound images; a file that is not plainly sound is read a second time."""
    if collected.plain and not images.named:
        columns = collected.builder.finish()
        known = np.isin(columns.image_ids, images.ids).all() and np.isin(columns.category_ids, categories.ids).all()
        if known:
            return columns
        del columns
    numbers, builder = itertools.count(), ColumnsBuilder()
    reader = EntryReader(
        images,
        categories,
        findings,
        path=path,
        severity="skipped" if skip else "error",
        keep_zero_area=collected.keep_zero_area,
    )
    _load_json(path, lambda entries: builder.add(reader.read(zip(numbers, entries, strict=False))))
    reader.mended.report(findings)
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
