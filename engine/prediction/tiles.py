"""Cut an image into overlapping tiles, each of which answers for its own region of the image."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil

import numpy as np

WIDENING = 8.0
"""Most that an own region is widened by, px of the source image"""


@dataclass(frozen=True)
class TilePlan:
    """A grid of tiles over an image; all have the same size, and the last row and column end at the image's border.

    The own regions of the tiles partition the image: they meet in the middle of each overlap.
    """

    width: int
    """px of the image"""
    height: int
    tile_width: int
    """px; at most `width`"""
    tile_height: int
    overlap_x: int
    """px that neighbours share at least; below `tile_width`"""
    overlap_y: int

    @cached_property
    def columns(self) -> list[int]:
        """Left edge of each column."""
        return _starts(self.width, self.tile_width, self.overlap_x)

    @cached_property
    def rows(self) -> list[int]:
        """Upper edge of each row."""
        return _starts(self.height, self.tile_height, self.overlap_y)

    def __len__(self) -> int:
        return len(self.columns) * len(self.rows)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(T, 4) int64 xyxy px, row by row."""
        return self._grid(
            [(left, left + self.tile_width) for left in self.columns],
            [(top, top + self.tile_height) for top in self.rows],
        ).astype(np.int64)

    @cached_property
    def own_regions(self) -> np.ndarray:
        """(T, 4) float64 xyxy px."""
        return self._grid(
            _between(self.columns, self.tile_width, self.width), _between(self.rows, self.tile_height, self.height)
        )

    @cached_property
    def widened_regions(self) -> np.ndarray:
        """(T, 4) float64 xyxy px: own regions, widened at each seam by a quarter of its overlap, at most WIDENING."""
        x, y = _widening(self.columns, self.tile_width), _widening(self.rows, self.tile_height)
        return self.own_regions + self._grid(x, y) * np.array([-1.0, -1.0, 1.0, 1.0])

    def _grid(self, x: list[tuple[float, float]], y: list[tuple[float, float]]) -> np.ndarray:
        """Pairs (low, high) per column and per row -> (T, 4) float64 (x low, y low, x high, y high)."""
        across, down = np.array(x, np.float64), np.array(y, np.float64)
        cells = [np.tile(across, (len(down), 1)), np.repeat(down, len(across), axis=0)]
        return np.concatenate(cells, axis=1)[:, [0, 2, 1, 3]]


def plan_tiles(width: int, height: int, *, tile: tuple[int, int] | None, overlap: float) -> TilePlan:
    """Tiles of an image; a single one if it fits into a tile, upright or turned, or if it is not to be cut.

    tile      (width, height) px, turned for an upright image; None: the whole image is one tile
    overlap   below 1: share of the tile's sides; else px

    Raises ValueError for an overlap that leaves no step between tiles.
    """
    if tile is None or _fits(width, height, tile):
        return TilePlan(width, height, width, height, 0, 0)
    if (width < height) != (tile[0] < tile[1]):
        tile = tile[::-1]
    sides = min(tile[0], width), min(tile[1], height)
    shared = [round(side * overlap) if overlap < 1 else round(overlap) for side in tile]
    if any(own >= side for own, side in zip(shared, tile, strict=True)):
        raise ValueError(f"overlap {max(shared)} px is not below the tile's side of {min(tile)} px")
    return TilePlan(width, height, *sides, *(min(own, side - 1) for own, side in zip(shared, sides, strict=True)))


def _fits(width: int, height: int, tile: tuple[int, int]) -> bool:
    """As the resize of an evaluation sees it: long side against long side."""
    return max(width, height) <= max(tile) and min(width, height) <= min(tile)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Positions of the tiles along an axis."""
    count = max(ceil((side - overlap) / (tile - overlap)), 1)
    return [min(i * (tile - overlap), side - tile) for i in range(count)]


def _seams(starts: list[int], tile: int) -> list[tuple[float, float]]:
    """(place, overlap) of each seam: the middle of what two neighbours share."""
    return [((after + before + tile) / 2, before + tile - after) for before, after in pairwise(starts)]


def _between(starts: list[int], tile: int, side: int) -> list[tuple[float, float]]:
    places = [0.0, *(place for place, _ in _seams(starts, tile)), float(side)]
    return list(pairwise(places))


def _widening(starts: list[int], tile: int) -> list[tuple[float, float]]:
    by = [0.0, *(min(shared / 4, WIDENING) for _, shared in _seams(starts, tile)), 0.0]
    return list(pairwise(by))
