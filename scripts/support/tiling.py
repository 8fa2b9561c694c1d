"""Large labelled images -> tiles; objects that a tile cuts are kept, ignored or dropped by what is visible of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from scripts.support.raw_data import RawImage

VISIBLE = 0.7
"""Share of its area from which on a cut object is still one. Source: mmrotate's split_ss_dota"""
_LEAST_SIDE = 1.0  # px of what is left of a region


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of an image: where it lies (xyxy px), and what is in it, relative to it."""

    window: tuple[int, int, int, int]
    image: RawImage


def cut(image: RawImage, size: tuple[int, int], *, tile: int, overlap: int, notes: Counter[str]) -> Iterator[Tile]:
    """The tiles of an image of (height, width) px, row by row; the last ones end at its border.

    An object with at least VISIBLE of its area inside stays, clipped; of the others, what is visible is ignored.
    """
    height, width = size
    name = PurePosixPath(image.name)
    for top in starts(height, tile=tile, overlap=overlap):
        for left in starts(width, tile=tile, overlap=overlap):
            window = (left, top, min(left + tile, width), min(top + tile, height))
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


def starts(length: int, *, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along an axis."""
    if length <= tile:
        return [0]
    step = tile - overlap
    return [min(i * step, length - tile) for i in range(-(-(length - overlap) // step))]


def _clipped(boxes: np.ndarray, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes relative to the window, clipped to it, and the share of each that is inside; 0 for slivers."""
    left, top, right, bottom = window
    clipped = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(axis=1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    share[(sides < _LEAST_SIDE).any(axis=1) & (share < 1 - 1e-9)] = 0
    return clipped - [left, top, left, top], share
