"""Large labelled images -> tiles; objects that a tile cuts are kept, ignored or dropped by what is visible of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from datasets.images.rasters import Window
from scripts.support.raw_data import RawImage

VISIBLE = 0.7
"""Share of its area from which on a cut object is still one. Source: mmrotate's split_ss_dota"""
_LEAST_SIDE = 1.0  # px of what is left of a region


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of an image: where it lies (xyxy px), and what is in it, relative to it."""

    window: Window
    image: RawImage


def cut(image: RawImage, size: tuple[int, int], *, tile: int, overlap: int, notes: Counter[str]) -> Iterator[Tile]:
    """The tiles of an image of (height, width) px, row by row; the last ones end at its border.

    An object with at least VISIBLE of its area inside stays, clipped; of the others, what is visible is ignored.
    """
    height, width = size
    name = PurePosixPath(image.name)
    for top in starts(height, tile=tile, overlap=overlap):
        for left in starts(width, tile=tile, overlap=overlap):
            window: Window = (left, top, min(left + tile, width), min(top + tile, height))
            boxes, share = _clipped(image.boxes, window)
            seen, whole = share > 0, share >= VISIBLE
            notes["object_cut_by_tile_ignored"] += int((seen & ~whole & ~image.ignored).sum())
            regions, region_share = _clipped(image.regions, window)
            yield Tile(
                window,
                RawImage(
                    file=image.file,
                    name=name.with_name(f"{name.stem}__{left}_{top}.png").as_posix(),
                    boxes=boxes[seen],
                    labels=image.labels[seen],
                    ignored=(image.ignored | ~whole)[seen],
                    regions=regions[region_share > 0],
                ),
            )


def blocks(image: RawImage, size: tuple[int, int], *, number: int, least: int) -> list[RawImage]:
    """Parts of an image of (height, width) px that do not overlap, with about equal numbers of objects.

    number   of the parts, at most
    least    shortest side of one, px

    An object on a border is in both, as in tiles.
    """
    height, width = size
    windows = [(0, 0, width, height)]
    centres = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
    while len(windows) < number:
        halves = {window: _halves(window, centres, least) for window in windows}
        able = [window for window in windows if halves[window]]
        if not able:
            break
        fullest = max(able, key=lambda window: (len(_inside(centres, window)), window))
        windows.remove(fullest)
        windows += halves[fullest]
    return [_part(image, window) for window in sorted(windows)]


def _halves(window: Window, centres: np.ndarray, least: int) -> list[Window]:
    """Cut across the longer side, at the median object; nothing if a part would be too short."""
    axis = int(window[3] - window[1] > window[2] - window[0])
    low, high = window[axis] + least, window[axis + 2] - least
    if low > high:
        return []
    inside = _inside(centres, window)[:, axis]
    middle = float(np.median(inside)) if len(inside) else (low + high) / 2
    border = int(np.clip(round(middle), low, high))
    first, second = list(window), list(window)
    first[axis + 2] = second[axis] = border
    return [(first[0], first[1], first[2], first[3]), (second[0], second[1], second[2], second[3])]


def _inside(centres: np.ndarray, window: Window) -> np.ndarray:
    low, high = np.array(window[:2]), np.array(window[2:])
    return centres[((centres >= low) & (centres < high)).all(axis=1)]


def _part(image: RawImage, window: Window) -> RawImage:
    """Its boxes are not clipped, as tiles will do that."""
    left, top = window[:2]
    origin, name = [left, top, left, top], PurePosixPath(image.name)
    _, share = _clipped(image.boxes, window)
    _, region_share = _clipped(image.regions, window)
    return RawImage(
        file=image.file,
        name=name.with_name(f"{name.stem}__{left}_{top}{name.suffix}").as_posix(),
        boxes=(image.boxes - origin)[share > 0],
        labels=image.labels[share > 0],
        ignored=image.ignored[share > 0],
        regions=(image.regions - origin)[region_share > 0],
        window=window,
    )


def starts(length: int, *, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along an axis."""
    if length <= tile:
        return [0]
    step = tile - overlap
    return [min(i * step, length - tile) for i in range(-(-(length - overlap) // step))]


def _clipped(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes relative to the window, clipped to it, and the share of each that is inside; 0 for slivers."""
    left, top, right, bottom = window
    clipped = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(axis=1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    share[(sides < _LEAST_SIDE).any(axis=1) & (share < 1 - 1e-9)] = 0
    return clipped - [left, top, left, top], share
