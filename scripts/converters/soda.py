"""SODA-A (a JSON file per image, polygons) and SODA-D (a COCO-like file per split), with their class `ignore`.

Source: Cheng et al., Towards Large-Scale Small Object Detection, TPAMI 2023, and its code.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import DataError
from scripts.support.raw_data import (
    ConvertOptions,
    ImageIndex,
    RawData,
    RawImage,
    choose_classes,
    images_below,
    readable_size,
    sound_box,
    split_of,
    unique_names,
    within_image,
)

IGNORE = "ignore"
NAMES = (
    *("airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank"),
    *("swimming-pool", "windmill", IGNORE),
)
"""Of SODA-A, by ids from 0"""
_PLAIN, _WITH_IGNORE, _TILES = "annotations", "annswithignore", "divdata"
"""Folders of SODA-A: the second has the same objects and those of the class `ignore`; the third holds tiles"""
_SNIFFED = 1 << 16  # bytes at both ends of a file


@dataclass(frozen=True)
class _Entry:
    """An image in an annotation file; `names` of the ids of its objects."""

    path: Path
    file_name: str
    objects: list[dict[str, Any]]
    names: dict[int, str]


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming the file and object."""
    notes: Counter[str] = Counter()
    files = label_files(source, notes)
    if not files:
        raise DataError(f"{source}: holds no annotations of SODA (such as Annotations/train/00001.json or train.json)")
    entries = [entry for path in files for entry in _entries(path, notes)]
    used = {name for entry in entries for each in entry.objects if (name := _name(each, entry)) != IGNORE}
    known = dict.fromkeys(name for entry in entries for _, name in sorted(entry.names.items()))
    classes = choose_classes(tuple(name for name in known if name in used), options.classes, source)
    index = ImageIndex(images_below(options.images or source))
    splits: dict[str, list[tuple[Path, _Entry]]] = defaultdict(list)
    for entry in entries:
        image = index.find(entry.file_name, near=entry.path)
        if image is None and options.skip_bad:
            notes["missing_image"] += 1
            continue
        if image is None:
            raise DataError(
                f"{entry.path}: {entry.file_name}: no such image below {options.images or source}; --skip-bad drops it"
            )
        folders = entry.path.relative_to(source).parts[:-1]
        split = split_of(entry.path.stem) or next((s for each in reversed(folders) if (s := split_of(each))), "train")
        splits[split].append((image, entry))
    read = {}
    for split, pairs in splits.items():
        names = unique_names([image for image, _ in pairs], options.images or source)
        read[split] = [
            _read(image, name, size, entry, classes, notes)
            for (image, entry), name in zip(pairs, names, strict=True)
            if (size := readable_size(image, options, notes))
        ]
    return RawData(classes, read, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    path = next(iter(label_files(source, Counter())), None)
    return f"{path.relative_to(source)} has the annotations of SODA" if path else None


def label_files(source: Path, notes: Counter[str]) -> list[Path]:
    """Of whole images where there are any, with ignored objects where there are such files too."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(source.rglob("*.json")):
        if not path.name.startswith("."):
            folders[path.parent].append(path)
    found = {folder: files for folder, files in folders.items() if any(map(_is_soda, files[:20]))}

    def parts(folder: Path) -> list[str]:
        return [part.lower() for part in folder.relative_to(source).parts]

    whole = [folder for folder in found if _TILES not in parts(folder)] or list(found)
    richer = {tuple(parts(folder)) for folder in whole if _WITH_IGNORE in parts(folder)}
    twin = {folder: tuple(_WITH_IGNORE if part == _PLAIN else part for part in parts(folder)) for folder in whole}
    chosen = [folder for folder in whole if _WITH_IGNORE in parts(folder) or twin[folder] not in richer]
    notes["file_of_another_form_of_the_same_images"] += sum(
        len(files) for folder, files in found.items() if folder not in chosen
    )
    return [path for folder in chosen for path in found[folder]]


def _is_soda(path: Path) -> bool:
    """By polygons under the key `poly`, or a category `ignore`."""
    with path.open("rb") as file:
        head = file.read(_SNIFFED)
        file.seek(max(path.stat().st_size - _SNIFFED, 0))
        text = (head + b"\n" + file.read()).decode(errors="replace")
    return '"poly"' in text or ('"categories"' in text and bool(re.search(r'"name":\s*"ignore"', text)))


def _entries(path: Path, notes: Counter[str]) -> Iterator[_Entry]:
    """Of a file of one image (SODA-A), which may be empty, or of a split (SODA-D)."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text) if text.strip() else {}
        objects = content.get("annotations") or []
        names = {int(each["id"]): str(each["name"]) for each in content.get("categories") or []}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as annotations of SODA ({error})") from None
    images = content.get("images")
    if not isinstance(images, list):
        notes["empty_label_file"] += not text.strip()
        yield _Entry(path, f"{path.stem}.jpg", objects, names or dict(enumerate(NAMES)))
        return
    owned: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in objects:
        owned[each.get("image_id")].append(each)
    for image in images:
        yield _Entry(path, str(image.get("file_name")), owned.pop(image.get("id"), []), names)
    notes["annotation_of_unknown_image"] += sum(map(len, owned.values()))


def _name(each: dict[str, Any], entry: _Entry) -> str:
    """Of the class of an object; tiles have the key `cat_id`."""
    label = each.get("category_id", each.get("cat_id"))
    try:
        return entry.names[int(label)]  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        known = ", ".join(f"{key} {name}" for key, name in entry.names.items())
        raise DataError(f"{entry.path}: annotation {each.get('id')}: category {label} is not one of {known}") from None


def _read(
    image: Path, name: str, size: tuple[int, int], entry: _Entry, classes: tuple[str, ...], notes: Counter[str]
) -> RawImage:
    """Objects of the class `ignore` are regions."""
    rows, regions = [], []
    for each in entry.objects:
        kind = _name(each, entry)
        if kind != IGNORE and kind not in classes:
            notes[f"class_not_chosen: {kind}"] += 1
            continue
        box = within_image(_box(each, entry, notes), size, notes)
        if box is None or not sound_box(box, notes):
            continue
        if kind == IGNORE:
            notes["ignored_region"] += 1
            regions.append(box)
        else:
            rows.append((box, classes.index(kind), bool(each.get("iscrowd") or each.get("ignore"))))
    return RawImage.of_rows(image, name, rows, regions)


def _box(each: dict[str, Any], entry: _Entry, notes: Counter[str]) -> list[float]:
    """xyxy px, around the polygon or of the box."""
    try:
        if "poly" in each:
            values = [float(value) for value in each["poly"]]
            if len(values) < 6 or len(values) % 2:
                raise ValueError
            notes["polygon_of_more_than_four_corners"] += len(values) > 8
            return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        x, y, w, h = (float(value) for value in each["bbox"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{entry.path}: annotation {each.get('id')}: neither poly with pairs of numbers nor bbox of four"
        ) from None
    return [x, y, x + w, y + h]
