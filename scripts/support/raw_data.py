"""A labelled data set as it was found: images with boxes, by split, and what was fixed or dropped on the way."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import DataError
from scripts.support.image_sizes import display_size

if TYPE_CHECKING:
    from datasets.images.rasters import Window

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".jp2"])
SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainval", "obj_train_data"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "obj_valid_data"), "val"),
    **dict.fromkeys(("test", "testing", "test-dev"), "test"),
}

LEAST_SIDE = 0.02
"""px; below, a box could be written, with two decimals, as one without area"""


@dataclass(frozen=True, eq=False)
class RawImage:
    """One image.

    file     where it is
    name     in the prepared data set, relative, with forward slashes
    boxes    (N, 4)  float64 xyxy px
    labels   (N,)    int64
    ignored  (N,)    bool, objects that are neither learned nor counted ("difficult")
    regions  (M, 4)  float64 xyxy px, where nothing of any class is learned or counted
    window   the part of the file that is the image, xyxy px, to which the boxes are relative; None: all of it
    """

    file: Path
    name: str
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    regions: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    window: Window | None = None

    @classmethod
    def of_rows(
        cls,
        file: Path,
        name: str,
        rows: Sequence[tuple[Sequence[float], int, bool]],
        regions: Sequence[object] = (),
        window: Window | None = None,
    ) -> RawImage:
        """From rows (box, label, ignored)."""
        return cls(
            file=file,
            name=name,
            boxes=np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
            labels=np.array([label for _, label, _ in rows], np.int64),
            ignored=np.array([ignored for *_, ignored in rows], np.bool_),
            regions=np.array(regions, np.float64).reshape(-1, 4),
            window=window,
        )


@dataclass
class RawData:
    """A data set.

    classes   names, in the order of the labels
    splits    train, val, test -> images
    notes     what was fixed or dropped, by reason
    remarks   what the user should know
    """

    classes: tuple[str, ...]
    splits: dict[str, list[RawImage]]
    notes: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConvertOptions:
    """What a user chose about the reading of a tree.

    classes       names, in their order; None: those that the tree says
    voc_origin    first pixel of VOC boxes
    num_classes   of VisDrone: 10, 11 or 12
    images        folder of the images; None: that of the labels
    class_field   of vectors; None: a usual name
    tile          side of the tiles that images will be cut into, px
    skip_bad      images that are missing or cannot be read are dropped
    """

    classes: tuple[str, ...] | None = None
    voc_origin: int = 1
    num_classes: int = 10
    images: Path | None = None
    class_field: str | None = None
    tile: int | None = None
    skip_bad: bool = False


def images_below(folder: Path) -> list[Path]:
    """All images of a folder and its subfolders, in order; without hidden files (`._x.png` of macOS)."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


class ImageIndex:
    """Finds images by names that other machines wrote: other folders, backslashes, other endings, hashes in front."""

    def __init__(self, images: Iterable[Path]) -> None:
        self.images = list(images)
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.images:
            self._by_name.setdefault(path.name.lower(), []).append(path)
            self._by_stem.setdefault(path.stem.lower(), []).append(path)

    def find(self, name: str, *, near: Path | None = None) -> Path | None:
        """The image with the longest common end of the path, then the nearest to a folder; None if there is none, or if
        two are as good."""
        parts = [part for part in re.split(r"[\\/]+", name.lower()) if part not in ("", ".", "..")]
        if not parts:
            return None
        last = parts[-1]
        candidates = self._by_name.get(last) or self._by_stem.get(last) or self._by_stem.get(Path(last).stem)
        if not candidates and re.match(r"[0-9a-f]{6,}[-_]", last):
            unhashed = re.split(r"[-_]", last, maxsplit=1)[1]
            candidates = self._by_name.get(unhashed)
        if not candidates:
            return None

        def rank(path: Path) -> tuple[int, int]:
            together = 0 if near is None else sum(a == b for a, b in zip(path.parts, near.parts, strict=False))
            return _common_end(path, parts), together

        ranked = sorted(candidates, key=rank, reverse=True)
        return None if len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]) else ranked[0]


def _common_end(path: Path, parts: Sequence[str]) -> int:
    """How many folders above the file agree."""
    count = 0
    for ours, theirs in zip(path.parts[-2::-1], parts[-2::-1], strict=False):
        if ours.lower() != theirs:
            break
        count += 1
    return count


def split_of(name: str) -> str | None:
    """train, val or test, from a name such as valid, test-dev, instances_train2017 or VisDrone2019-DET-val."""
    words = re.split(r"[^a-z]+", name.lower())
    for word in (name.lower(), *words):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def sound_box(box: Sequence[float], notes: Counter[str]) -> bool:
    """Whether a box is finite and has an area; counts why not."""
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all():
        notes["box_not_finite"] += 1
        return False
    if x1 - x0 < LEAST_SIDE or y1 - y0 < LEAST_SIDE:
        notes["box_without_area"] += 1
        return False
    return True


def within_image(box: Sequence[float], size: tuple[int, int], notes: Counter[str]) -> list[float] | None:
    """A box (xyxy px) clipped to an image of (height, width) px; None if it is outside. Counts both."""
    height, width = size
    x0, y0, x1, y1 = box
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        notes["box_outside_image"] += 1
        return None
    clipped = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
    notes["box_clipped"] += clipped != [x0, y0, x1, y1]
    return clipped


def unique_names(files: Sequence[Path], root: Path) -> list[str]:
    """Names of images in the prepared data set: the shortest ends of their paths, below root, that are unique."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    paths, base = [Path(os.path.abspath(file)) for file in files], Path(os.path.abspath(root))
    if not all(path.is_relative_to(base) for path in paths):
        base = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(base).as_posix() for path in paths]


def settle_names(data: RawData, source: Path, *, tiled: bool = False) -> None:
    """Give images of a split that have the same name their folders in front of it.

    tiled   names differ without their endings too, as tiles have endings of their own
    """
    root = source.parent if source.is_file() else source
    for split, images in data.splits.items():
        if len({image.name for image in images}) < len(images):
            folders = [PurePosixPath(name).parent for name in unique_names([image.file for image in images], root)]
            images = [
                replace(image, name=(folder / PurePosixPath(image.name).name).as_posix())
                for folder, image in zip(folders, images, strict=True)
            ]
        if tiled:
            stems = Counter(PurePosixPath(image.name).with_suffix("") for image in images)
            images = [
                image if stems[name.with_suffix("")] == 1 else replace(image, name=_with_ending_in_stem(name))
                for image in images
                for name in [PurePosixPath(image.name)]
            ]
        data.splits[split] = images


def _with_ending_in_stem(name: PurePosixPath) -> str:
    return name.with_name(f"{name.stem}_{name.suffix[1:]}{name.suffix}").as_posix()


def choose_classes(known: Sequence[str], chosen: tuple[str, ...] | None, source: Path) -> tuple[str, ...]:
    """The known names, or those that the user chose of them. Raises DataError for others."""
    if chosen is None:
        return tuple(known)
    if unknown := [name for name in chosen if name not in known]:
        raise DataError(f"--classes {unknown[0]}: {source} has no such class; it has {', '.join(known)}")
    return chosen


def readable_size(image: Path, options: ConvertOptions, notes: Counter[str]) -> tuple[int, int] | None:
    """(height, width) px as shown; None for an image that cannot be read, if such images are dropped.

    Raises DataError.
    """
    try:
        return display_size(image)
    except DataError as error:
        if not options.skip_bad:
            raise DataError(f"{error.summary()}; --skip-bad drops such images") from None
        notes["unreadable_image"] += 1
        return None


def require_images(data: RawData, source: Path) -> None:
    """Raises DataError for a data set without images, objects or classes."""
    if not data.classes:
        raise DataError(f"{source}: names no classes; give them with --classes a,b,c")
    if not any(data.splits.values()):
        raise DataError(f"{source}: holds no labelled image")
    if not any(len(image.labels) for images in data.splits.values() for image in images):
        raise DataError(f"{source}: holds no object (found: {dict(data.notes) or 'nothing'})")
