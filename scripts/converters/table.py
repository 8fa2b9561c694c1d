"""CSV with a box in each line: image_path, xmin, ymin, xmax, ymax, label (DeepForest; predictions)."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

from datasets.errors import DataError
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

COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and line. A line without a box lists an image without objects."""
    notes: Counter[str] = Counter()
    root = options.images or (source if source.is_dir() else source.parent)
    index = ImageIndex(images_below(root))
    rows = {path: _read(path) for path in csv_files(source)}
    names = {row["label"] for lines in rows.values() for _, row in lines if row["xmin"]}
    classes = choose_classes(sorted(names), options.classes, source)
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[RawImage]] = {}
    for path, lines in rows.items():
        found: dict[Path, list[tuple[list[float], int, bool]]] = defaultdict(list)
        for number, row in lines:
            image = index.find(row["image_path"])
            if image is None and options.skip_bad:
                notes["missing_image"] += 1
                continue
            if image is None:
                raise DataError(
                    f"{path}:{number}: {row['image_path']!r}: no such image below {root}, or two of that name; "
                    "--skip-bad drops such images"
                )
            boxes = found[image]
            if row["xmin"] and row["label"] in label_of:
                try:
                    box = [float(row[key]) for key in COLUMNS[1:5]]
                except ValueError:
                    raise DataError(f"{path}:{number}: {[row[k] for k in COLUMNS[1:5]]} are not numbers") from None
                if sound_box(box, notes):
                    boxes.append((box, label_of[row["label"]], False))
        images = [RawImage.of_rows(image, image.name, boxes) for image, boxes in found.items()]
        splits.setdefault(split_of(path.stem) or "train", []).extend(images)
    listed = {image.file for images in splits.values() for image in images}
    notes["image_not_listed"] += len(set(index.images) - listed)
    return RawData(tuple(classes), splits, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    files = csv_files(source)
    return f"{files[0].name} has the columns {', '.join(COLUMNS)}" if files else None


def csv_files(source: Path) -> list[Path]:
    """Files with these columns."""
    candidates = [source] if source.is_file() else sorted(source.rglob("[!.]*.csv"))
    return [path for path in candidates if set(COLUMNS) <= set(_header(path))]


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row). Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return [(reader.line_num, {key: row[key] or "" for key in COLUMNS}) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
