"""NEON tree crowns: NeonTreeEvaluation (annotations/, training/RGB, evaluation/RGB), or DeepForest's unpacked wheel.

Pixels count from 0. One class, `tree`, whatever the files say. Source: Weinstein et al., PLOS Computational Biology
2021.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from datasets.errors import DataError
from scripts.converters import neon_trees
from scripts.support.raw_data import ConvertOptions, RawData, RawImage, choose_classes, images_below, sound_box

FOLDERS = {"training": "train", "evaluation": "test"}
SCENES = {scene: split for split, scene in neon_trees.SPLITS.items()}
"""Of the wheel, the two that are different places"""


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming the file."""
    notes: Counter[str] = Counter()
    labels = label_files(source)
    if not labels:
        raise DataError(_advice(source))
    splits: dict[str, list[RawImage]] = {}
    used = set()
    for image in images_below(options.images or source):
        split = _split(image)
        if split is None or image.stem not in labels:
            notes["image_without_annotation"] += split is not None
            notes["image_of_another_sensor_or_scene"] += split is None
            continue
        used.add(image.stem)
        boxes = _boxes(labels[image.stem])
        rows = [(box, 0, False) for box in boxes if sound_box(box, notes)]
        splits.setdefault(split, []).append(RawImage.of_rows(image, image.name, rows))
    notes["annotation_without_image"] += len(labels) - len(used)
    return RawData(choose_classes(neon_trees.CLASSES, options.classes, source), splits, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    for path in label_files(source).values():
        return f"{path.relative_to(source)} is an annotation of NEON tree crowns"
    wheel = next(iter(sorted(source.glob("deepforest-*.whl"))), None)
    return f"{wheel.name} holds NEON tree crowns" if wheel else None


def label_files(source: Path) -> dict[str, Path]:
    """XML files by their stems: of annotations/ beside evaluation/ or training/, and of the wheel's two scenes."""
    found = [path for path in sorted(source.rglob("*.xml")) if not path.name.startswith(".")]
    beside = {folder: any((folder.parent / name / "RGB").is_dir() for name in FOLDERS) for folder in _parents(found)}
    return {path.stem: path for path in found if path.stem in SCENES or beside[path.parent]}


def _parents(files: list[Path]) -> set[Path]:
    return {path.parent for path in files}


def _split(image: Path) -> str | None:
    """None for other sensors, and for scenes of the wheel that are neither."""
    if image.parent.name == "RGB":
        return FOLDERS.get(image.parent.parent.name)
    return SCENES.get(image.stem)


def _boxes(path: Path) -> list[list[float]]:
    try:
        return neon_trees.read_boxes(path.read_bytes()).tolist()
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a VOC annotation ({error})") from None


def _advice(source: Path) -> str:
    wheel = next(iter(sorted(source.glob("deepforest-*.whl"))), None)
    if wheel is not None:
        return f"{wheel}: is packed; unpack it: python -m zipfile -e {wheel.name} FOLDER, and give FOLDER"
    return (
        f"{source}: holds no NEON tree crowns: annotations/*.xml beside training/RGB and evaluation/RGB; or fetch two "
        "scenes with scripts/prepare_neon_trees.py"
    )
