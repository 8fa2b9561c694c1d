"""VisDrone-DET: the original text files. For a tree that ultralytics has converted, use the kind yolo.

A line: x, y, width, height, score, category, truncation, occlusion; some end with a comma. In annotations score 0 means
ignore. Category 0 is an ignored region, 11 "others". Source: VisDrone2018-DET-toolkit, README.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from datasets.errors import DataError
from scripts.support.raw_data import (
    ConvertOptions,
    RawData,
    RawImage,
    choose_classes,
    images_below,
    sound_box,
    split_of,
)

NAMES = ("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor")
ALL_NAMES = ("ignored regions", *NAMES, "others")


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and line. With 10 classes, others and ignored regions are regions that nothing
    counts in; with 11, others are a class; with 12, ignored regions too."""
    notes: Counter[str] = Counter()
    names = {10: NAMES, 11: (*NAMES, "others"), 12: ALL_NAMES}.get(options.num_classes)
    if names is None:
        raise DataError(f"--num-classes {options.num_classes}: VisDrone has 10, 11 (with others) or 12 classes")
    classes = choose_classes(names, options.classes, source)
    splits: dict[str, list[RawImage]] = {}
    for folder in image_folders(source):
        split = split_of(folder.parent.name) or "train"
        for image in images_below(folder):
            label = folder.parent / "annotations" / f"{image.stem}.txt"
            if not label.is_file():
                notes["image_without_label_file"] += 1
                continue
            splits.setdefault(split, []).append(_read(image, label, names, classes, notes))
    return RawData(classes, splits, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    for folder in image_folders(source):
        label = next(iter(sorted((folder.parent / "annotations").glob("[!.]*.txt"))), None)
        if label is None:
            continue
        line = label.read_text(encoding="utf-8-sig", errors="replace").split("\n")[0]
        if len(line.strip().strip(",").split(",")) == 8:
            return f"{label.relative_to(source)} has lines of eight numbers"
    return None


def image_folders(source: Path) -> list[Path]:
    """images/ beside annotations/."""
    found = [path for path in [source / "images", *sorted(source.rglob("images"))] if path.is_dir()]
    return [path for path in dict.fromkeys(found) if (path.parent / "annotations").is_dir()]


def _read(image: Path, label: Path, names: tuple[str, ...], classes: tuple[str, ...], notes: Counter[str]) -> RawImage:
    rows, regions = [], []
    for number, line in enumerate(label.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.strip().strip(",").split(",")
        if words == [""]:
            continue
        notes["trailing_comma"] += line.strip().endswith(",")
        try:
            x, y, w, h, score, category, *_ = map(int, words)
        except ValueError:
            raise DataError(f"{label}:{number}: {line[:60]!r} is not eight whole numbers") from None
        if not 0 <= category < len(ALL_NAMES):
            raise DataError(f"{label}:{number}: category {category} is not in 0..11")
        box = [x, y, x + w, y + h]
        if not sound_box(box, notes):
            continue
        name = ALL_NAMES[category]
        if name not in names:
            notes["ignored_region" if category == 0 else "others_as_ignored_region"] += 1
            regions.append(box)
        elif name not in classes:
            notes[f"class_not_chosen: {name}"] += 1
        else:
            ignored = score == 0 and category != 0
            notes["ignored_object"] += ignored
            rows.append((box, classes.index(name), ignored))
    return RawImage.of_rows(image, image.name, rows, regions)
