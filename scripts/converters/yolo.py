"""YOLO text labels: ultralytics and Roboflow (data.yaml), CVAT (obj.data), darknet (pictures and text side by side)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from datasets.errors import DataError
from scripts.converters.visdrone import NAMES as VISDRONE
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
)
from scripts.support.yolo_description import find_descriptions, images_of, names_beside, read_descriptions

SLACK = 1.0
"""Coordinates this far outside of 0..1 are clipped; beyond, the file is not normalised"""


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and line."""
    notes: Counter[str] = Counter()
    index = ImageIndex(images_below(source))
    files = find_descriptions(source)
    description = read_descriptions(source, files, index, notes)
    known = description.names or names_beside(source)
    classes = choose_classes(known, options.classes, source) if known else options.classes
    if not classes:
        raise DataError(f"{source}: no class names: no data.yaml, obj.names or *.names; give --classes a,b,c")
    reader = LabelReader(tuple(known) or classes, classes, description.keypoints, options, notes)
    listed = description.splits or splits_by_folder(source, index, notes)
    splits = {}
    for split, images in listed.items():
        labelled = [(image, label_file(image, source)) for image in images]
        kept = [(image, label) for image, label in labelled if label is not None or files]
        notes["image_without_label_file"] += sum(label is None for _, label in labelled)
        names = unique_names([image for image, _ in kept], source)
        read = (reader.read(image, name, label) for (image, label), name in zip(kept, names, strict=True))
        splits[split] = [image for image in read if image is not None]
    used = {label_file(image, source) for images in listed.values() for image in images}
    strays = [path for path in label_files(source) if path not in used]
    notes["label_file_without_image"] += len(strays)
    remarks = [f"{len(strays)} label files have no image, for example {strays[0].name}"] if strays else []
    if notes["others_as_ignored_region"]:
        remarks.append("converted from VisDrone: class 10, others, is ignored; its ignored regions were lost before")
    return RawData(classes, splits, +notes, remarks)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    descriptions = find_descriptions(source)
    if descriptions:
        return f"{descriptions[0].name} with class names"
    beside = next((path for path in images_below(source) if path.with_suffix(".txt").is_file()), None)
    if beside is not None and names_beside(source):
        return f"{beside.name} and {beside.stem}.txt side by side, and a .names file"
    if any(is_below_labels(path, source) for path in label_files(source)):
        return "text files below labels/"
    return None


def splits_by_folder(source: Path, index: ImageIndex, notes: Counter[str]) -> dict[str, list[Path]]:
    """By train.txt and the like, whose folders may be those of another machine; else by the names of folders."""
    lists = {
        path: split for path in sorted(source.glob("*.txt")) if (split := split_of(path.stem.rstrip("0123456789")))
    }
    splits: dict[str, list[Path]] = {}
    for path, split in lists.items():
        splits.setdefault(split, []).extend(images_of(path, index, notes))
    listed = {image for images in splits.values() for image in images}
    for image in index.images:
        if image not in listed:
            folders = image.relative_to(source).parts[:-1]
            split = next((found for folder in folders if (found := split_of(folder))), "train")
            splits.setdefault(split, []).append(image)
    return {split: list(dict.fromkeys(images)) for split, images in splits.items()}


def label_files(source: Path) -> list[Path]:
    """Text files that are neither lists nor names nor notes for a reader."""
    texts = sorted(path for path in source.rglob("*.txt") if not path.name.startswith("."))
    return [path for path in texts if is_below_labels(path, source) or not _is_other_text(path)]


def is_below_labels(path: Path, source: Path) -> bool:
    return "labels" in (part.lower() for part in path.relative_to(source).parts[:-1]) and path.stem != "classes"


def _is_other_text(path: Path) -> bool:
    stem = path.stem.lower()
    return stem == "classes" or stem.startswith("readme") or split_of(stem.rstrip("0123456789")) is not None


def label_file(image: Path, source: Path) -> Path | None:
    """Beside the image, or at the same place below labels/ in the place of images/."""
    beside = image.with_suffix(".txt")
    if beside.is_file():
        return beside
    parts = image.relative_to(source).parts if image.is_relative_to(source) else image.parts
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            for folder in _labels_in(source.joinpath(*parts[:place])):
                path = folder.joinpath(*parts[place + 1 :]).with_suffix(".txt")
                if path.is_file():
                    return path
    return None


@lru_cache(maxsize=4096)
def _labels_in(folder: Path) -> tuple[Path, ...]:
    """labels/, in any case."""
    return tuple(sorted(path for path in folder.iterdir() if path.name.lower() == "labels" and path.is_dir()))


@dataclass(frozen=True)
class LabelReader:
    """Reads label files.

    names      of the classes in the files
    classes    of them, those that are wanted
    keypoints  lines end with the numbers of keypoints
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    keypoints: bool
    options: ConvertOptions
    notes: Counter[str]

    def read(self, image: Path, name: str, label: Path | None) -> RawImage | None:
        """An image with the boxes of its label file; None if it cannot be read. Raises DataError, naming the line."""
        size = readable_size(image, self.options, self.notes)
        if size is None:
            return None
        height, width = size
        rows, regions = [], []
        lines = [] if label is None else label.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, start=1):
            if not (words := line.split()):
                continue
            kind, box = self._read_line(words, f"{label}:{number}")
            pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
            if not sound_box(pixels, self.notes):
                continue
            if kind == len(self.names):
                self.notes["others_as_ignored_region"] += 1
                regions.append(pixels)
            elif self.names[kind] in self.classes:
                rows.append((pixels, self.classes.index(self.names[kind]), False))
            else:
                self.notes[f"class_not_chosen: {self.names[kind]}"] += 1
        return RawImage.of_rows(image, name, rows, regions)

    def _read_line(self, words: list[str], where: str) -> tuple[int, list[float]]:
        """Class and box (x0, y0, x1, y1), shares of the image; of a polygon or oriented box, the box around it."""
        try:
            kind, *values = [float(word) for word in words]
        except ValueError:
            raise DataError(f"{where}: {' '.join(words)[:60]!r} is not a line of numbers") from None
        last = len(self.names) - (self.names != VISDRONE)  # whose converted files have an eleventh, others
        if kind != int(kind) or not 0 <= kind <= last:
            raise DataError(
                f"{where}: class {words[0]}, but there are {len(self.names)} classes, numbered from 0; check their list"
            )
        if self.keypoints and len(values) > 4:
            self.notes["keypoints_dropped"] += 1
            values = values[:4]
        return int(kind), self._box_of(values, where)

    def _box_of(self, values: list[float], where: str) -> list[float]:
        notes = self.notes
        if len(values) == 5:
            notes["score_in_label"] += 1
            values = values[:4]
        if len(values) == 4:
            x, y, w, h = values
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        elif len(values) >= 6 and len(values) % 2 == 0:
            notes["polygon_to_box"] += 1
            box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        else:
            raise DataError(f"{where}: {len(values) + 1} numbers; a box has 5, a polygon 7 or more, an odd number")
        if any(value != value for value in box):
            return box
        if min(box) < -SLACK or max(box) > 1 + SLACK:
            raise DataError(f"{where}: box {[round(v, 3) for v in box]} is not within 0..1; the file is not normalised")
        clipped = [min(max(value, 0.0), 1.0) for value in box]
        notes["box_clipped"] += clipped != [min(max(value, -1e-6), 1 + 1e-6) for value in box]
        return clipped
