"""YOLO text labels: ultralytics and Roboflow (data.yaml), CVAT (obj.data), darknet (pictures and text side by side)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from datasets.errors import DataError
from scripts.support.image_sizes import display_size
from scripts.support.raw_data import (
    ConvertOptions,
    ImageIndex,
    RawData,
    RawImage,
    images_below,
    sound_box,
    split_of,
    unique_names,
)

SLACK = 0.01
"""Coordinates this far outside of 0..1 are clipped; beyond, the file is not normalised"""


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and line."""
    notes: Counter[str] = Counter()
    remarks: list[str] = []
    index = ImageIndex(images_below(source))
    description = find_description(source)
    names, listed = read_description(source, description, index, notes)
    classes = options.classes or names or names_beside(source)
    if not classes:
        raise DataError(f"{source}: no class names: no data.yaml, obj.names or *.names; give --classes a,b,c")
    if not listed:
        listed = splits_by_folder(source, index, notes)
    splits = {}
    for split, files in listed.items():
        labelled = [(image, label_file(image, source)) for image in files]
        kept = [(image, label) for image, label in labelled if label is not None or description is not None]
        notes["image_without_label_file"] += sum(label is None for _, label in labelled)
        images = unique_names([image for image, _ in kept], source)
        splits[split] = [
            read_image(image, name, label, classes, notes) for (image, label), name in zip(kept, images, strict=True)
        ]
    used = {label_file(image, source) for files in listed.values() for image in files}
    strays = [path for path in label_files(source) if path not in used]
    notes["label_file_without_image"] += len(strays)
    if strays:
        remarks.append(f"{len(strays)} label files have no image, for example {strays[0].name}")
    return RawData(tuple(classes), splits, +notes, remarks)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    description = find_description(source)
    if description is not None:
        return f"{description.name} with class names"
    beside = next((path for path in images_below(source) if path.with_suffix(".txt").is_file()), None)
    if beside is not None and names_beside(source):
        return f"{beside.name} and {beside.stem}.txt side by side, and a .names file"
    if any(path.parent.name == "labels" or "labels" in path.parent.parts for path in label_files(source)):
        return "text files below labels/"
    return None


def find_description(source: Path) -> Path | None:
    """data.yaml or another YAML file with `names`; obj.data."""
    for path in [*sorted(source.glob("*.y*ml")), *sorted(source.glob("*/*.y*ml"))]:
        content = _read_yaml(path)
        if isinstance(content, dict) and isinstance(content.get("names"), list | dict):
            return path
    return next(iter(sorted(source.rglob("obj.data"))), None)


def read_description(
    source: Path, path: Path | None, index: ImageIndex, notes: Counter[str]
) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Class names, and the images of each split."""
    if path is None:
        return (), {}
    if path.name == "obj.data":
        pairs = (line.partition("=")[::2] for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
        content: dict[str, Any] = {key.strip(): value.strip() for key, value in pairs}
        root = path.parent
        file = _resolve(root, root, content.get("names", "obj.names")) or root / "obj.names"
        names: Any = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        content = _read_yaml(path)
        names, root = content["names"], Path(str(content.get("path") or ""))
        root = root if root.is_absolute() and root.is_dir() else path.parent / root
        root = root if root.is_dir() else path.parent
    ordered = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
    splits: dict[str, list[Path]] = {}
    for key in ("train", "val", "valid", "test"):
        split, entries = split_of(key), content.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            place = _resolve(root, path.parent, str(entry))
            if place is None:
                if key != "test":
                    raise DataError(f"{path}: {key}: {entry}: no such folder or list below {path.parent}")
                notes["missing_test_split"] += 1
                continue
            assert split is not None
            splits.setdefault(split, []).extend(_images_of(place, index, notes))
    return tuple(map(str, ordered)), splits


def names_beside(source: Path) -> tuple[str, ...]:
    """Of obj.names, classes.txt or another list of names."""
    for path in [*sorted(source.rglob("*.names")), *sorted(source.rglob("classes.txt"))]:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return ()


def splits_by_folder(source: Path, index: ImageIndex, notes: Counter[str]) -> dict[str, list[Path]]:
    """By train.txt and the like, whose folders may be those of another machine; else by the names of folders."""
    lists = {
        path: split for path in sorted(source.glob("*.txt")) if (split := split_of(path.stem.rstrip("0123456789")))
    }
    splits: dict[str, list[Path]] = {}
    for path, split in lists.items():
        splits.setdefault(split, []).extend(_images_of(path, index, notes))
    listed = {image for images in splits.values() for image in images}
    for image in index.images:
        if image not in listed:
            folders = image.relative_to(source).parts[:-1]
            split = next((found for folder in folders if (found := split_of(folder))), "train")
            splits.setdefault(split, []).append(image)
    return {split: list(dict.fromkeys(images)) for split, images in splits.items()}


def label_files(source: Path) -> list[Path]:
    """Text files that are neither lists nor names."""
    texts = sorted(path for path in source.rglob("*.txt") if not path.name.startswith("."))
    return [path for path in texts if not (split_of(path.stem.rstrip("0123456789")) or path.stem == "classes")]


def label_file(image: Path, source: Path) -> Path | None:
    """Beside the image, or at the same place below labels/ in the place of images/."""
    beside = image.with_suffix(".txt")
    if beside.is_file():
        return beside
    parts = image.relative_to(source).parts if image.is_relative_to(source) else image.parts
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            path = source.joinpath(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
            if path.is_file():
                return path
    return None


def read_image(image: Path, name: str, label: Path | None, classes: tuple[str, ...], notes: Counter[str]) -> RawImage:
    """An image with the boxes of its label file. Raises DataError, naming the line."""
    height, width = display_size(image)
    rows = []
    lines = [] if label is None else label.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        kind, box = read_line(words, f"{label}:{number}", len(classes), notes)
        pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        if sound_box(pixels, notes):
            rows.append((pixels, kind, False))
    return RawImage.of_rows(image, name, rows)


def read_line(words: list[str], where: str, classes: int, notes: Counter[str]) -> tuple[int, list[float]]:
    """Class and box (x0, y0, x1, y1), shares of the image; of a polygon or oriented box, the box around it."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise DataError(f"{where}: {' '.join(words)[:60]!r} is not a line of numbers") from None
    kind, values = numbers[0], numbers[1:]
    if kind != int(kind) or not 0 <= kind < classes:
        raise DataError(
            f"{where}: class {words[0]}, but there are {classes} classes, numbered from 0; check their list"
        )
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
        raise DataError(f"{where}: {len(words)} numbers; a box has 5, a polygon 7 or more, an odd number")
    if any(value != value for value in box):
        return int(kind), box
    if min(box) < -SLACK or max(box) > 1 + SLACK:
        raise DataError(f"{where}: box {[round(v, 3) for v in box]} is not within 0..1; the file is not normalised")
    clipped = [min(max(value, 0.0), 1.0) for value in box]
    notes["box_clipped"] += clipped != [min(max(value, -1e-6), 1 + 1e-6) for value in box]
    return int(kind), clipped


def _images_of(place: Path, index: ImageIndex, notes: Counter[str]) -> list[Path]:
    """Of a folder, or of a list of paths as another machine wrote them."""
    if place.is_dir():
        return images_below(place)
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    found = [index.find(line) for line in lines]
    notes["listed_image_missing"] += sum(image is None for image in found)
    return [image for image in found if image is not None]


def _resolve(root: Path, beside: Path, entry: str) -> Path | None:
    """A path of a data.yaml or obj.data: below its root, beside it, absolute, or with folders too many in front."""
    parts = [part for part in Path(entry).parts if part not in ("..", ".", "/")]
    tries: Iterable[Path] = [
        root / entry,
        beside / entry,
        *(base.joinpath(*parts[i:]) for i in range(len(parts)) for base in (root, beside)),
    ]
    return next((path for path in tries if path.exists()), None)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
