"""DOTA text files: oriented boxes of eight numbers, a class and `difficult`; whole images or mmrotate's tiles.

Two header lines (imagesource, gsd) may be missing. Source: Xia et al., DOTA, CVPR 2018, and its devkit.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

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
)

# The order of the published code (FIDELITY), all 18 classes of v2.0; v1.0 and v1.5 use the first 15 and 16.
NAMES = (
    *("plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship"),
    *("tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor"),
    *("swimming-pool", "helicopter", "container-crane", "airport", "helipad"),
)


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming file and line."""
    notes: Counter[str] = Counter()
    index = ImageIndex(images_below(source))
    files = without_union(label_files(source), source, notes)
    found = {_class_name(line.split()) for path in files for line in _lines(path)}
    others = sorted(found - set(NAMES))
    classes = (*(name for name in NAMES if name in found), *others)
    if options.classes is not None:
        classes = choose_classes((*NAMES, *others), options.classes, source)
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[tuple[Path, Path]]] = {}
    for path in files:
        image = index.find(path.stem, near=path)
        if image is None:
            notes["label_file_without_image"] += 1
            continue
        folders = path.relative_to(source).parts[:-1]
        split = next((s for folder in folders if (s := split_of(folder))), "train")
        splits.setdefault(split, []).append((image, path))
    notes["image_without_label_file"] += len({i.stem for i in index.images} - {path.stem for path in files})
    read = {}
    for split, pairs in splits.items():
        names = unique_names([image for image, _ in pairs], source)
        images = (_read(i, n, path, label_of, options, notes) for (i, path), n in zip(pairs, names, strict=True))
        read[split] = [image for image in images if image is not None]
    return RawData(tuple(classes), read, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    for path in label_files(source):
        line = next(iter(_lines(path)), None)
        if line is not None:
            return f"{path.relative_to(source)} has lines of eight corners and a class"
    return None


def label_files(source: Path) -> list[Path]:
    """Text files in labelTxt*, annfiles, or with lines of DOTA; horizontal variants (`_hbb`) are the same objects."""
    found = []
    for path in sorted(source.rglob("*.txt")):
        folders = [part.lower() for part in path.relative_to(source).parts[:-1]]
        named = any(folder.startswith("labeltxt") or folder == "annfiles" for folder in folders)
        if named and not path.name.startswith(".") and not any("hbb" in folder for folder in folders):
            found.append(path)
    return found


def without_union(files: list[Path], source: Path, notes: Counter[str]) -> list[Path]:
    """mmrotate keeps trainval beside train and val, with the same tiles: without it."""
    folders = {path: {part.lower() for part in path.relative_to(source).parts[:-1]} for path in files}
    if not any(folders[path] & {"train", "val"} for path in files):
        return files
    kept = [path for path in files if "trainval" not in folders[path]]
    notes["label_file_of_another_split_of_the_same_images"] += len(files) - len(kept)
    return kept


def _lines(path: Path) -> list[str]:
    """Those of objects; header lines have fewer words."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line for line in lines if len(line.split()) >= 9 and not line.startswith(("imagesource", "gsd"))]


def _class_name(words: list[str]) -> str:
    """Names may hold blanks; the last word is `difficult` where it is a number."""
    last = words[-1] if len(words) > 9 and words[-1].isdecimal() else None
    return "-".join(words[8 : -1 if last is not None else None])


def _read(
    image: Path, name: str, path: Path, label_of: dict[str, int], options: ConvertOptions, notes: Counter[str]
) -> RawImage | None:
    size = readable_size(image, options, notes)
    if size is None:
        return None
    height, width = size
    rows = []
    lines = _lines(path)
    notes["empty_label_file"] += not lines
    for line in lines:
        words = line.split()
        kind = _class_name(words)
        if kind not in label_of:
            notes[f"class_not_chosen: {kind}"] += 1
            continue
        try:
            corners = [float(word) for word in words[:8]]
        except ValueError:
            raise DataError(f"{path}: {line[:80]!r}: the first eight words are not numbers") from None
        x, y = corners[::2], corners[1::2]
        box = [max(min(x), 0.0), max(min(y), 0.0), min(max(x), width), min(max(y), height)]
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            notes["box_outside_image"] += 1
            continue
        notes["corners_outside_clipped"] += box != [min(x), min(y), max(x), max(y)]
        if sound_box(box, notes):
            rows.append((box, label_of[kind], words[-1].isdecimal() and int(words[-1]) > 0))
    return RawImage.of_rows(image, name, rows)
