"""A RawData -> OUT: images (linked, copied or tiles), annotations, manifest, samples."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from datasets.errors import DataError
from datasets.images.decode import ImageFile
from datasets.images.rasters import DecodedImage, Raster, RasterOptions, Window
from engine.drawing import INK, PAPER, beside, stack, text_line
from scripts.support.coco_writer import CocoWriter
from scripts.support.image_sizes import MAX_PIXELS, display_size
from scripts.support.raw_data import RawData, RawImage
from scripts.support.tiling import Tile, cut

SAMPLES = 12
COUNT_EDGES = (0, 1, 11, 51, 101, 501)
SIZE_EDGES = (0, 4, 8, 16, 32, 64)
"""px, sqrt(w*h)"""
_PANEL_PX = 320


def open_image(path: Path) -> Raster:
    """Raises DataError."""
    display_size(path)
    return DecodedImage(ImageFile(path), RasterOptions(MAX_PIXELS))


@dataclass(frozen=True)
class WriteOptions:
    """How images are written.

    copy             they are copied, not linked
    tile, overlap    px; None: they stay whole
    empty_share      of the training tiles without objects, this share is kept
    open             an image file whose pixels are needed
    """

    copy: bool
    tile: int | None
    overlap: int
    skip_bad: bool
    empty_share: float = 1.0
    open: Callable[[Path], Raster] = open_image


@dataclass(frozen=True, eq=False)
class Written:
    """What was written of one split."""

    writer: CocoWriter
    samples: list[Image.Image]
    regions: int


def write_split(out: Path, split: str, data: RawData, options: WriteOptions) -> Written:
    """Write the images and annotations of a split. Raises DataError for an image that cannot be read."""
    writer, regions = CocoWriter(data.classes), 0
    samples: list[Image.Image] = []
    images = data.splits[split]
    chosen = set(_spread(len(images), SAMPLES))
    silent = not sys.stderr.isatty()
    for place, image in enumerate(tqdm(images, desc=split, unit="image", leave=False, disable=silent)):
        try:
            sparse = replace(options, empty_share=options.empty_share if split == "train" else 1.0)
            parts = _write_image(out / split, image, sparse, data.notes)
            if place in chosen and len(samples) < SAMPLES:
                samples.append(draw_sample(image, options.open))
        except DataError as error:
            if not options.skip_bad:
                raise DataError(f"{error.summary()}; --skip-bad drops such images") from None
            data.notes["unreadable_image"] += 1
            continue
        for part, part_size in parts:
            _annotate(writer, part, part_size)
            regions += len(part.regions)
    writer.write(out / "annotations" / f"{split}.json")
    return Written(writer, samples, regions)


def _write_image(
    folder: Path, image: RawImage, options: WriteOptions, notes: Counter[str]
) -> list[tuple[RawImage, tuple[int, int]]]:
    """The image, linked or copied, or parts of it, saved as PNG; with sizes."""
    if options.tile is None and image.window is None:
        size = display_size(image.file)
        _place(image.file, folder / image.name, copy=options.copy)
        return [(image, size)]
    found = []
    with closing(options.open(image.file)) as source:
        for tile in _parts(image, source, options, notes):
            pixels = source.read(_shifted(tile.window, _window(image, source)))
            if pixels is None:
                notes["tile_without_data"] += 1
                notes["object_without_data"] += len(tile.image.labels)
                continue
            path = folder / tile.image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels.save(path)
            found.append((tile.image, pixels.size[::-1]))
    return found


def _parts(image: RawImage, source: Raster, options: WriteOptions, notes: Counter[str]) -> Iterator[Tile]:
    """The tiles, or all of the window, without some of those that show no object."""
    left, top, right, bottom = _window(image, source)
    height, width = bottom - top, right - left
    if options.tile is None:
        yield Tile((0, 0, width, height), image)
        return
    for tile in cut(image, (height, width), tile=options.tile, overlap=options.overlap, notes=notes):
        if tile.image.ignored.all() and _draw_lot(tile.image.name) >= options.empty_share:
            notes["tile_without_objects_dropped"] += 1
        else:
            yield tile


def _draw_lot(name: str) -> float:
    """In 0..1, the same for the same name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _window(image: RawImage, source: Raster) -> Window:
    return image.window or (0, 0, source.width, source.height)


def _shifted(window: Window, origin: Window) -> Window:
    left, top = origin[:2]
    return window[0] + left, window[1] + top, window[2] + left, window[3] + top


def _place(source: Path, target: Path, *, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(os.path.realpath(source))


def _annotate(writer: CocoWriter, image: RawImage, size: tuple[int, int]) -> None:
    """Ignored objects are crowds of their class, regions crowds of every class."""
    classes = len(writer.categories)
    boxes = np.concatenate([image.boxes, np.repeat(image.regions, classes, axis=0)])
    labels = np.concatenate([image.labels, np.tile(np.arange(classes), len(image.regions))])
    crowd = np.concatenate([image.ignored, np.ones(classes * len(image.regions), np.bool_)])
    writer.add(image.name, size=size, boxes=boxes, labels=labels, crowd=crowd)


def _spread(count: int, number: int) -> list[int]:
    """Indices spread evenly over a range."""
    return np.unique(np.linspace(0, count - 1, min(number, count)).astype(int)).tolist() if count else []


def draw_sample(image: RawImage, open_file: Callable[[Path], Raster] = open_image) -> Image.Image:
    """An image with its objects in yellow, ignored ones in grey, and its name; the densest part of a large one."""
    with closing(open_file(image.file)) as source:
        window = _window(image, source)
        size = np.array([window[2] - window[0], window[3] - window[1]])
        side = min(max(_PANEL_PX, round(int(size.min()) / 3)), *size.tolist())
        centres = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
        middle = np.median(centres, axis=0) if len(centres) else size / 2
        left, top = np.clip(middle - side / 2, 0, size - side).round().astype(int).tolist()
        pixels = source.read(_shifted((left, top, left + side, top + side), window))
    scale = _PANEL_PX / side
    panel = Image.new("RGB", (_PANEL_PX, _PANEL_PX)) if pixels is None else pixels.resize((_PANEL_PX, _PANEL_PX))
    draw = ImageDraw.Draw(panel)
    for box, ignored in zip((image.boxes - [left, top, left, top]) * scale, image.ignored, strict=True):
        x0, y0, x1, y1 = box.round().astype(int).tolist()
        outside = [x0 - 1, y0 - 1, max(x1, x0 + 2), max(y1, y0 + 2)]
        draw.rectangle([outside[0] - 1, outside[1] - 1, outside[2] + 1, outside[3] + 1], outline=INK)
        draw.rectangle(outside, outline=(170, 170, 170) if ignored else (240, 228, 66))
    name = image.name if len(image.name) <= 34 else f"...{image.name[-31:]}"
    return stack([panel, text_line([name], 14), text_line([f"{len(image.labels)} objects"], 14)])


def draw_sheet(samples: list[Image.Image]) -> Image.Image:
    """The samples in rows of four."""
    rows = [beside(samples[start : start + 4], gap=12) for start in range(0, len(samples), 4)]
    sheet = stack(rows)
    page = Image.new("RGB", (sheet.width + 24, sheet.height + 24), PAPER)
    page.paste(sheet, (12, 12))
    return page


def describe_split(written: Written, folder: Path) -> dict[str, Any]:
    """Entry of a split in manifest.json."""
    writer = written.writer
    boxes = np.array([a["bbox"] for a in writer.annotations if not a["iscrowd"]], np.float64).reshape(-1, 4)
    labels = [a["category_id"] for a in writer.annotations if not a["iscrowd"]]
    counts = Counter(a["image_id"] for a in writer.annotations if not a["iscrowd"])
    per_image = np.array([counts[image["id"]] for image in writer.images])
    sizes = np.sqrt(boxes[:, 2] * boxes[:, 3])
    annotations = (folder / "annotations").glob("*.json")
    return {
        "images": len(writer.images),
        "objects": len(labels),
        "ignored": len(writer.annotations) - len(labels),
        "per_class": {name: labels.count(i) for i, name in enumerate(writer.categories, start=1)},
        "objects_per_image": _histogram(per_image, COUNT_EDGES),
        "object_size_px": _histogram(sizes, SIZE_EDGES),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(annotations)},
    }


def _histogram(values: np.ndarray, edges: tuple[int, ...]) -> dict[str, int]:
    """Number of values in each range; the last has no end."""
    limits = [*edges, np.inf]
    counts, _ = np.histogram(values, limits)
    names = [*(f"{low} to {high - 1}" if high > low + 1 else str(low) for low, high in pairwise(edges))]
    return dict(zip([*names, f"from {edges[-1]}"], counts.tolist(), strict=True))


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
