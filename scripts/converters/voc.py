"""Pascal VOC XML: JPEGImages, Annotations, ImageSets; DIOR, whose folders and class names vary; LabelImg's pairs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
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
    sound_box,
    split_of,
)

ORIENTED = "oriented bounding boxes"
"""DIOR's second folder of annotations, of the same objects"""


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming the file."""
    notes: Counter[str] = Counter()
    index = ImageIndex(images_below(source))
    files = xml_files(source)
    parsed = {path: root for path in files if (root := _parse(path)).tag == "annotation"}
    known = sorted({n for root in parsed.values() for n in _names(root)}, key=lambda n: (n.lower(), n))
    folded = {name.lower() for name in known}
    respelled = [name for name in options.classes or () if name.lower() in folded and name not in known]
    names = choose_classes((*known, *respelled), options.classes, source)
    label_of = {name.lower(): label for label, name in enumerate(dict.fromkeys(name.lower() for name in names))}
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.lower(), name)
    notes["class_names_that_differ_in_case"] += len(names) - len(label_of)
    splits: dict[str, list[RawImage]] = {}
    listed = read_lists(source)
    for path, root in parsed.items():
        stem = path.stem
        image = index.find(stem, near=path) or index.find(root.findtext("filename") or "", near=path)
        if image is None:
            notes["annotation_without_image"] += 1
            continue
        split = listed.get(stem) or _split_by_folder(image, source)
        splits.setdefault(split, []).append(_read(path, root, image, label_of, options.voc_origin, notes))
    notes["image_without_annotation"] += len({path.stem for path in index.images} - {path.stem for path in parsed})
    return RawData(tuple(spelled[name] for name in label_of), splits, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    faults = []
    for path in xml_files(source)[:20]:
        try:
            if _parse(path).tag == "annotation":
                return f"{path.relative_to(source)} is a VOC annotation"
        except DataError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return None


def xml_files(source: Path) -> list[Path]:
    """Without hidden ones, and those of hidden folders (.idea)."""
    visible = sorted(
        path
        for path in source.rglob("*.xml")
        if not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    return [path for path in visible if ORIENTED not in (part.lower() for part in path.parts)]


def read_lists(source: Path) -> dict[str, str]:
    """Image stem -> split, of ImageSets/Main/*.txt; train and val before the trainval that holds both."""
    found: dict[str, str] = {}
    lists = sorted(source.rglob("ImageSets/Main/*.txt"), key=lambda path: path.stem == "trainval")
    for path in lists:
        if path.stem in ("train", "val", "test", "trainval"):
            for line in path.read_text(encoding="utf-8-sig").splitlines():
                if line.split():
                    found.setdefault(line.split()[0], split_of(path.stem) or "train")
    return found


def _split_by_folder(image: Path, source: Path) -> str:
    folders = image.relative_to(source).parts[:-1]
    return next((found for folder in folders if (found := split_of(folder))), "train")


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"{path}: cannot be read as XML ({error})") from None


def _names(root: ElementTree.Element) -> list[str]:
    return [(item.findtext("name") or "").strip() for item in root.iter("object")]


def _read(
    path: Path, root: ElementTree.Element, image: Path, label_of: dict[str, int], origin: int, notes: Counter[str]
) -> RawImage:
    rows = []
    for number, item in enumerate(root.iter("object")):
        name = (item.findtext("name") or "").strip()
        if name.lower() not in label_of:
            notes[f"class_not_chosen: {name}"] += 1
            continue
        box = item.find("bndbox")
        texts = [None if box is None else box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(text) for text in texts)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise DataError(f"{path}: object {number} ({name}): bndbox {texts} is not four numbers") from None
        corners = [x0 - origin, y0 - origin, x1, y1]
        if sound_box(corners, notes):
            rows.append((corners, label_of[name.lower()], (item.findtext("difficult") or "0").strip() == "1"))
    return RawImage.of_rows(image, image.name, rows)
