"""AI-TOD v1 and v2: its JSON files under all their names, or the text files that its generator leaves without them.

Images are looked for anywhere below the tree; the devkit has some of them in several folders. Source:
jwwangchn/AI-TOD and its aitodtoolkit.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TypeVar

from datasets.errors import DataError
from scripts.support import coco_reader
from scripts.support.raw_data import ConvertOptions, RawData, RawImage, choose_classes, images_below, sound_box

NAMES = ("airplane", "bridge", "storage-tank", "ship", "swimming-pool", "vehicle", "person", "wind-mill")
_FILE = re.compile(r"(ai[-_]?tod.*)|(small_)?(train|val|trainval|test)_v[12][\d._]*|xview_.*_small", re.IGNORECASE)
_HALF = re.compile(r"wo_xview|^xview_", re.IGNORECASE)
"""Files of a part of the images, which the merged ones hold too"""
_FROM_XVIEW = re.compile(r"\d+__\d+_\d+\.png")
"""Images that everybody cuts out of xView, whose licence forbids to pass them on"""
_SPLITS = {"trainval": "trainval", "training": "train", "train": "train", "val": "val", "test": "test"}

Row = tuple[list[float], int, bool]
T = TypeVar("T")


def convert(source: Path, options: ConvertOptions) -> RawData:
    """With a test split, trainval is trained on where there is one. Raises DataError, naming the file."""
    notes: Counter[str] = Counter()
    files = annotation_files(source)
    images: dict[str, list[Path]] = defaultdict(list)
    for path in images_below(options.images or source):
        images[path.name].append(path)
    if files:
        chosen = _settle(_one_version(files, notes), notes)
        contents = {split: coco_reader.load(path) for split, path in chosen.items()}
        name_of = coco_reader.class_names(list(contents.values()))
        classes = choose_classes(tuple(name_of.values()), options.classes, source)
        label_of = {key: classes.index(name) for key, name in name_of.items() if name in classes}
        rows = {split: _read_json(chosen[split], content, label_of, notes) for split, content in contents.items()}
        remarks = [f"{split}: {path.relative_to(source).as_posix()}" for split, path in chosen.items()]
    else:
        classes = choose_classes(NAMES, options.classes, source)
        texts = _settle(text_files(source), notes)
        if not texts:
            raise DataError(f"{source}: holds no file of AI-TOD, such as aitodv2_trainval.json")
        rows = {split: {f"{p.stem}.png": _read_text(p, classes, notes) for p in each} for split, each in texts.items()}
        remarks = ["no JSON: the text files are only the part from xView; fetch AI-TOD's annotations for all of it"]
    _require(rows, images, source, notes, skip=options.skip_bad)
    splits = {
        {"trainval": "train"}.get(split, split): [
            RawImage.of_rows(_nearest(images[name], split), name, found)
            for name, found in each.items()
            if name in images
        ]
        for split, each in rows.items()
    }
    return RawData(classes, splits, +notes, remarks)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    for path in annotation_files(source):
        return f"{path.relative_to(source)} is a file of AI-TOD"
    for texts in text_files(source).values():
        return f"{texts[0].relative_to(source)} has boxes of AI-TOD's classes"
    return None


def annotation_files(source: Path) -> list[Path]:
    """Of all images; of those without the xView part only if there are no others."""
    found = [path for path in sorted(source.rglob("*.json")) if _split_of(path.stem) and _is_json(path)]
    whole = [path for path in found if not _HALF.search(path.stem)]
    return whole or found


def text_files(source: Path) -> dict[str, list[Path]]:
    """By split: x0 y0 x1 y1 class, of the generator."""
    found: dict[str, list[Path]] = {}
    folders = sorted(path for path in source.rglob("labels*") if path.is_dir())
    for folder in [*folders, *(path for each in folders for path in sorted(each.iterdir()) if path.is_dir())]:
        files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
        split = _split_of(folder.name) or _split_of(folder.parent.name)
        if files and split is not None and _is_text(files[0]):
            found.setdefault(split, []).extend(files)
    return found


def _is_json(path: Path) -> bool:
    """By its name, or where others may have that name too, by its classes."""
    name = _FILE.fullmatch(path.stem)
    if name is None or name[1]:
        return name is not None
    try:
        return set(coco_reader.class_names([coco_reader.load(path)]).values()) <= set(NAMES)
    except DataError:
        return False


def _is_text(path: Path) -> bool:
    words = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")[0].split()
    return len(words) == 5 and words[4] in NAMES


def _split_of(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _one_version(files: list[Path], notes: Counter[str]) -> dict[str, Path]:
    """A file of each split. Raises DataError if there are files of both versions."""
    versions: dict[int, dict[str, Path]] = {}
    for path in files:
        version = 2 if re.search(r"v2", path.stem, re.IGNORECASE) else 1
        split = _split_of(path.stem)
        assert split is not None  # see annotation_files
        if split in versions.setdefault(version, {}):
            notes["file_of_another_name_of_the_same_images"] += 1
        versions[version].setdefault(split, path)
    if len(versions) > 1:
        first, second = (next(iter(versions[version].values())).name for version in (1, 2))
        raise DataError(
            f"{files[0].parent}: {first} is of version 1, {second} of version 2, of the same images; keep one of the "
            "versions below SRC"
        )
    return next(iter(versions.values()))


def _settle(found: dict[str, T], notes: Counter[str]) -> dict[str, T]:
    """trainval holds train and val: of the two forms, that which fits the other splits."""
    parts = [split for split in ("train", "val") if split in found]
    if "trainval" not in found or not parts:
        return found
    dropped = parts if "test" in found else ["trainval"]
    notes["file_of_another_split_of_the_same_images"] += len(dropped)
    return {split: each for split, each in found.items() if split not in dropped}


def _read_json(
    path: Path, content: coco_reader.Entry, label_of: dict[int, int], notes: Counter[str]
) -> dict[str, list[Row]]:
    """File name -> objects. Ids are from 0 in some files; they are not kept."""
    objects = coco_reader.by_image(content)
    found: dict[str, list[Row]] = {}
    for place, image in enumerate(content["images"]):
        name = re.split(r"[\\/]", str(image.get("file_name")))[-1]
        if name in found:
            raise DataError(f"{path}: images[{place}]: {name} is listed twice")
        rows = found[name] = []
        for each in objects.pop(str(image.get("id")), []):
            box, label = coco_reader.read_box(each, path)
            if label not in label_of:
                notes["annotation_of_unknown_category"] += 1
            elif sound_box(box, notes):
                ignored = bool(each.get("ignore") or each.get("iscrowd"))
                notes["ignored_object"] += ignored
                rows.append((box, label_of[label], ignored))
    notes["annotation_of_unknown_image"] += sum(map(len, objects.values()))
    return found


def _read_text(path: Path, classes: tuple[str, ...], notes: Counter[str]) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.split()
        try:
            box, name = [float(word) for word in words[:4]], words[4]
        except (IndexError, ValueError):
            raise DataError(f"{path}:{number}: {line[:60]!r} is not x0 y0 x1 y1 class") from None
        if name not in classes:
            notes[f"class_not_chosen: {name}"] += 1
        elif sound_box(box, notes):
            rows.append((box, classes.index(name), False))
    return rows


def _require(
    rows: dict[str, dict[str, list[Row]]],
    images: dict[str, list[Path]],
    source: Path,
    notes: Counter[str],
    *,
    skip: bool,
) -> None:
    """Raises DataError if images are missing, saying what to fetch; counts them if they are skipped."""
    wanted = [name for each in rows.values() for name in each]
    missing = sorted(name for name in wanted if name not in images)
    if not missing or skip:
        notes["missing_image"] += len(missing)
        return
    xview = [name for name in missing if _FROM_XVIEW.fullmatch(name)]
    advice = (
        f"{len(xview)} of them, such as {xview[0]}, are those from xView: fetch its train_images (xviewdataset.org, "
        "with registration) and run AI-TOD's aitodtoolkit"
        if xview
        else "fetch AI-TOD_wo_xview"
    )
    raise DataError(f"{source}: {len(missing)} of {len(wanted)} images are missing; {advice}; --skip-bad drops them")


def _nearest(files: list[Path], split: str) -> Path:
    """Of copies of an image, that in a folder of the split, outside of the generator's xview/."""
    return min(files, key=lambda path: ("xview" in path.parts, split not in path.parts, path.as_posix()))
