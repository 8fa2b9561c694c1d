"""TinyPerson: COCO-like files with `ignore` and `uncertain`, and with `corner`, where an entry is a part of an image.

The authors train on parts of 640 x 512 px (`sw640_sh512`) and test on whole images. Source: Yu et al., Scale Match for
Tiny Person Detection, WACV 2020, and its annotation guide.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.errors import DataError
from scripts.support import coco_reader
from scripts.support.raw_data import (
    ConvertOptions,
    ImageIndex,
    RawData,
    RawImage,
    choose_classes,
    images_below,
    sound_box,
    split_of,
)

_NAME = re.compile(r"tiny_set_.*\.json", re.IGNORECASE)
_WITHOUT_BOXES = ("nobox", "coarse", "noise")
"""In names of files without boxes, or with points in their place"""
_ERASED = "erase_with_uncertain_dataset"
"""Folder of the images in which ignored and uncertain objects are painted over"""


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and entry. With --tile, whole images are read; otherwise parts where there are."""
    notes: Counter[str] = Counter()
    files = label_files(source)
    if not files:
        raise DataError(f"{source}: holds no tiny_set_*.json")
    chosen = {split: _choose(each, whole=options.tile is not None) for split, each in files.items()}
    notes["file_of_another_form_of_the_same_images"] += sum(len(each) - 1 for each in files.values())
    contents = {split: coco_reader.load(path) for split, path in chosen.items()}
    name_of = coco_reader.class_names(list(contents.values()))
    classes = choose_classes(tuple(dict.fromkeys(name_of.values())), options.classes, source)
    images = images_below(options.images or source)
    splits = {}
    for split, path in chosen.items():
        erased = "erase" in path.stem
        suitable = [each for each in images if (_ERASED in each.parts) == erased] or images
        in_split = [each for each in suitable if split_of(each.parent.name) in (split, None)] or suitable
        label_of = {key: classes.index(name) for key, name in name_of.items() if name in classes}
        splits[split] = _read(path, contents[split], ImageIndex(in_split), label_of, notes, skip=options.skip_bad)
    remarks = [f"{split}: {path.relative_to(source).as_posix()}" for split, path in chosen.items()]
    return RawData(classes, splits, +notes, remarks)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    path = next((path for paths in label_files(source).values() for path in paths), None)
    return f"{path.relative_to(source)} is a file of TinyPerson" if path else None


def label_files(source: Path) -> dict[str, list[Path]]:
    """By split."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(source.rglob("*.json")):
        if _NAME.fullmatch(path.name) and not any(word in path.stem for word in _WITHOUT_BOXES):
            found[split_of(path.stem) or "train"].append(path)
    return dict(found)


def _choose(paths: list[Path], *, whole: bool) -> Path:
    """The task's file (one class, without crowds of people), of whole images or their parts, erased if there is one."""

    def rank(path: Path) -> tuple[bool, ...]:
        name = path.stem
        return ("with_dense" in name, "_all" not in name, ("_sw" in name) == whole, "erase" not in name)

    return min(paths, key=lambda path: (rank(path), path.as_posix()))


def _read(
    path: Path,
    content: dict[str, Any],
    index: ImageIndex,
    label_of: dict[int, int],
    notes: Counter[str],
    *,
    skip: bool,
) -> list[RawImage]:
    objects = coco_reader.by_image(content)
    images = []
    for place, entry in enumerate(content["images"]):
        where = f"{path}: images[{place}]"
        file = index.find(str(entry.get("file_name")), near=path)
        if file is None and not skip:
            raise DataError(
                f"{where}: {entry.get('file_name')!r}: no such image, or two of that name; --skip-bad drops it"
            )
        owned = objects.pop(str(entry.get("id")), [])
        notes["missing_image"] += file is None
        if file is None:
            continue
        window = _window(entry, where)
        name = PurePosixPath(file.name)
        if window is not None:
            name = name.with_name(f"{name.stem}__{window[0]}_{window[1]}.png")
        rows, regions = _boxes(owned, label_of, path, notes)
        images.append(RawImage.of_rows(file, name.as_posix(), rows, regions, window))
    notes["annotation_of_unknown_image"] += sum(map(len, objects.values()))
    return images


def _window(entry: dict[str, Any], where: str) -> tuple[int, int, int, int] | None:
    """The part that an entry with `corner` is."""
    corner = entry.get("corner")
    if corner is None:
        return None
    try:
        left, top, right, bottom = (round(float(value)) for value in corner)
    except (TypeError, ValueError):
        raise DataError(f"{where}: corner {corner!r} is not [x0, y0, x1, y1]") from None
    if not (0 <= left < right and 0 <= top < bottom):
        raise DataError(f"{where}: corner {corner!r} is no part of an image")
    return left, top, right, bottom


def _boxes(
    objects: list[dict[str, Any]], label_of: dict[int, int], path: Path, notes: Counter[str]
) -> tuple[list[tuple[list[float], int, bool]], list[list[float]]]:
    """Rows (box, label, ignored) and ignored regions. `ignore` marks a region, `uncertain` an object that nobody can
    tell."""
    rows, regions = [], []
    for each in objects:
        box, label = coco_reader.read_box(each, path)
        if label not in label_of:
            notes["annotation_of_unknown_category"] += 1
        elif not sound_box(box, notes):
            continue
        elif each.get("ignore"):
            notes["ignored_region"] += 1
            regions.append(box)
        else:
            uncertain = bool(each.get("uncertain"))
            notes["uncertain_object"] += uncertain
            rows.append((box, label_of[label], uncertain or bool(each.get("iscrowd"))))
    return rows, regions
