"""COCO JSON as tools export it: Roboflow, CVAT, Label Studio, FiftyOne; one file per split."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
)


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming the file and entry."""
    notes: Counter[str] = Counter()
    files = without_unions(coco_files(source), notes)
    if not files:
        raise DataError(f"{source}: holds no COCO file (JSON with images, annotations and categories)")
    contents = {path: json.loads(path.read_text(encoding="utf-8-sig")) for path in files}
    classes = choose_classes(_classes(contents, notes), options.classes, source)
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[RawImage]] = {}
    for path, content in contents.items():
        folders = path.relative_to(source).parts[:-1]
        split = split_of(path.stem) or next((s for folder in reversed(folders) if (s := split_of(folder))), "train")
        places = _image_places(path, source, split)
        images = _read(path, content, label_of, places, options, notes)
        _require_new(path, images, splits.get(split, []), split)
        splits.setdefault(split, []).extend(images)
    return RawData(tuple(classes), splits, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    files = coco_files(source, all_sound=False)
    return f"{files[0].relative_to(source)} is a COCO file" if files else None


def _image_places(path: Path, source: Path, split: str) -> list[ImageIndex]:
    """Where to look for the images of a file, one after the other: below it, else anywhere; then only in folders that
    its name says, or that its split is called, as other splits may have images of the same names."""
    below = images_below(path.parent) or images_below(source)
    words = set(re.split(r"[^a-z0-9]+", path.stem.lower()))
    folders = {image: [part.lower() for part in image.relative_to(source).parts[:-1]] for image in below}
    named = [image for image in below if words & set(folders[image])]
    same = [image for image in below if split in map(split_of, folders[image])]
    return [ImageIndex(images) for images in (below, named, same)]


def _require_new(path: Path, images: list[RawImage], before: list[RawImage], split: str) -> None:
    """Raises DataError for a second file of a split that lists images of the first, as AI-TOD v1 beside v2 does."""
    known = {image.file for image in before}
    if repeated := [image for image in images if image.file in known]:
        raise DataError(
            f"{path}: lists {len(repeated)} images that another file of {split} lists too, for example "
            f"{repeated[0].file.name}; keep one of both files in the tree"
        )


def coco_files(source: Path, *, all_sound: bool = True) -> list[Path]:
    """JSON files with images, annotations and categories.

    all_sound   a file that is no JSON is an error even where others are

    Raises DataError.
    """
    found, faults = [], []
    for path in sorted(source.rglob("*.json")):
        if path.name.startswith("._"):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError) as error:
            faults.append(DataError(f"{path}: cannot be read as JSON ({error})"))
            continue
        keys = ("images", "annotations", "categories")
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys):
            found.append(path)
    if faults and (all_sound or not found):
        raise faults[0]
    return found


def without_unions(files: list[Path], notes: Counter[str]) -> list[Path]:
    """AI-TOD has train, val, trainval and test: with a test file trainval is trained on, otherwise train."""
    words = {path: re.split(r"[^a-z]+", path.stem.lower()) for path in files}
    if any("instances" in words[path] for path in files):  # of COCO, beside person_keypoints of the same images
        others = [path for path in files if "keypoints" in words[path]]
        notes["file_of_another_task"] += len(others)
        files = [path for path in files if path not in others]
    unions = [path for path in files if "trainval" in words[path]]
    parts = [path for path in files if path not in unions and split_of(path.stem) in ("train", "val")]
    if not unions or not parts:
        return files
    dropped = parts if any(split_of(path.stem) == "test" for path in files) else unions
    notes["file_of_another_split_of_the_same_images"] += len(dropped)
    return [path for path in files if path not in dropped]


def _classes(contents: dict[Path, dict[str, Any]], notes: Counter[str]) -> tuple[str, ...]:
    """By ascending id of the first file; without categories that are only the parent of others (Roboflow's root)."""
    names: dict[str, None] = {}
    for path, content in contents.items():
        used = {_whole(each.get("category_id")) for each in content["annotations"]}
        categories = content.get("categories") or []
        parents = {each.get("supercategory") for each in categories}
        try:
            ordered = sorted(categories, key=lambda each: _whole(each["id"]))
        except (KeyError, TypeError):
            raise DataError(f"{path}: categories: each needs a whole number as its id") from None
        for each in ordered:
            if each["name"] in parents and _whole(each["id"]) not in used and len(categories) > 1:
                notes[f"category_without_boxes: {each['name']}"] += 1
            else:
                names.setdefault(str(each["name"]))
    return tuple(names)


def _read(
    path: Path,
    content: dict[str, Any],
    label_of: dict[str, int],
    places: list[ImageIndex],
    options: ConvertOptions,
    notes: Counter[str],
) -> list[RawImage]:
    name_of = {_whole(each["id"]): str(each["name"]) for each in content.get("categories") or []}
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in content["annotations"]:
        objects[str(each.get("image_id"))].append(each)
    images = []
    for place, entry in enumerate(content["images"]):
        where = f"{path}: images[{place}]"
        own = objects.pop(str(entry.get("id")), [])
        file = _find(path, str(entry.get("file_name") or ""), places, notes)
        if file is None and options.skip_bad:
            notes["missing_image"] += 1
            continue
        if file is None:
            raise DataError(
                f"{where}: {entry.get('file_name')!r}: no such image below {path.parent}, or two of that name; "
                "--skip-bad drops such images"
            )
        size = readable_size(file, options, notes)
        if size is None:
            continue
        if _differs(entry, size):
            raise DataError(
                f"{where}: {file.name} is {size[1]} x {size[0]} px, but the file says {entry.get('width')} x "
                f"{entry.get('height')}; boxes would be misplaced"
            )
        images.append(RawImage.of_rows(file, file.name, list(_rows(own, path, size, name_of, label_of, notes))))
    notes["annotation_of_unknown_image"] += sum(map(len, objects.values()))
    return images


def _rows(
    annotations: list[dict[str, Any]],
    path: Path,
    size: tuple[int, int],
    name_of: dict[Any, str],
    label_of: dict[str, int],
    notes: Counter[str],
) -> Iterator[tuple[list[float], int, bool]]:
    """Box, label, ignored."""
    for each in annotations:
        name = name_of.get(_whole(each.get("category_id")))
        if not each.get("bbox") and not each.get("segmentation"):
            notes["annotation_without_box"] += 1
        elif name is None or name not in label_of:
            notes["annotation_of_unknown_category"] += 1
        elif sound_box(box := _box(each, size, f"{path}: annotation {each.get('id')}", notes), notes):
            yield box, label_of[name], bool(each.get("iscrowd") or each.get("ignore") or 0)


def _whole(value: Any) -> Any:
    """Ids as text are numbers."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdecimal() else value


def _find(path: Path, name: str, places: list[ImageIndex], notes: Counter[str]) -> Path | None:
    """Beside the JSON, below it, or anywhere by name."""
    direct = path.parent / name.replace("\\", "/")
    if name and direct.is_file():
        return direct
    found = next((image for place in places if (image := place.find(name)) is not None), None)
    notes["image_found_elsewhere"] += found is not None
    return found


def _differs(entry: dict[str, Any], size: tuple[int, int]) -> bool:
    known = [entry.get("height"), entry.get("width")]
    return all(isinstance(side, int) and side > 0 for side in known) and tuple(known) != size


def _box(entry: dict[str, Any], size: tuple[int, int], where: str, notes: Counter[str]) -> list[float]:
    """xyxy px; from the segmentation where there is no box; negative sizes are turned around."""
    box = entry.get("bbox")
    if not box and entry.get("segmentation"):
        notes["box_from_segmentation"] += 1
        return _box_of_segmentation(entry["segmentation"], size, where)
    try:
        x, y, w, h = (float(value) for value in box)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(f"{where}: bbox {box!r} is not [x, y, width, height]") from None
    notes["negative_size_turned"] += w < 0 or h < 0
    return [min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h)]


def _box_of_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> list[float]:
    """Polygons or run lengths, by pycocotools."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in segmentation])
        return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    from pycocotools import mask

    try:
        coded = mask.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation
        x, y, w, h = mask.toBbox(coded).tolist()
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: segmentation cannot be read ({error})") from None
    return [x, y, x + w, y + h]
