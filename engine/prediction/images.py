"""One image: its tiles through the detector, their detections merged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from engine.distributed.processes import Processes, gather_rows
from engine.evaluation.evaluate import ImagePrediction
from engine.prediction.ahead import ahead
from engine.prediction.merging import merge_tiles
from engine.prediction.records import FoundObjects
from engine.prediction.tiles import TilePlan

Detect = Callable[[Sequence[Image.Image]], Sequence[ImagePrediction]]
"""RGB images -> predictions, boxes in px of each image"""
ReadWindow = Callable[[tuple[int, int, int, int]], Image.Image | None]
"""xyxy px -> RGB image, None where there are no data"""
GRID = 256
"""Most cells of a side of the density of a whole image"""


@dataclass(frozen=True)
class Selection:
    """Which detections are kept."""

    conf: float
    """Lowest score"""
    labels: frozenset[int] | None = None
    """None: all"""

    def of(self, prediction: ImagePrediction) -> np.ndarray:
        """(N,) bool"""
        kept = prediction.scores.double().numpy() >= self.conf
        if self.labels is not None:
            kept &= np.isin(prediction.labels.numpy(), sorted(self.labels))
        return kept


@dataclass(frozen=True, eq=False)
class TileFindings:
    """What the detector found in some tiles of an image, a row each, by ascending tile."""

    detections: np.ndarray
    """(N, 7) float64: tile, x0, y0, x1, y1 px of the image, score, label"""
    tiles: np.ndarray
    """(T, 4) float64: tile, queries, objects by density or NaN, expected objects or NaN, both of the own region"""
    density: np.ndarray
    """(C, 3) float64: tile, cell of `density_grid`, objects"""

    def gathered(self, processes: Processes) -> "TileFindings":
        """Those of all processes, as one process would have found them. A collective call."""
        columns = self.detections, self.tiles, self.density
        every = [gather_rows(torch.from_numpy(rows), processes).numpy() for rows in columns]
        return TileFindings(*(rows[np.argsort(rows[:, 0], kind="stable")] for rows in every))


@dataclass(frozen=True, eq=False)
class ImageFindings:
    """What was found in an image."""

    objects: FoundObjects
    predicted_count: float | None
    expected_count: float | None
    num_queries: int
    num_tiles: int
    num_blank: int
    density: np.ndarray | None
    """(h, w) objects per cell of `density_grid`"""


def density_grid(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of the grid that holds the density of a whole image: square cells of 4 px or more."""
    cell = max(4.0, max(width, height) / GRID)
    return max(round(height / cell), 1), max(round(width / cell), 1)


def search_tiles(
    plan: TilePlan,
    read: ReadWindow,
    detect: Detect,
    *,
    batch_size: int,
    selection: Selection,
    rank: int = 0,
    world_size: int = 1,
) -> TileFindings:
    """Detect in this process's share of the tiles: every world_size-th batch of them. Blank tiles are skipped.

    Batches are cut from all tiles, blank ones included, so that they are the same on any number of processes.
    """

    def read_batch(first: int) -> list[tuple[int, Image.Image]]:
        batch = range(first, min(first + batch_size, len(plan)))
        images = [(tile, read(tuple(plan.boxes[tile].tolist()))) for tile in batch]
        return [(tile, image) for tile, image in images if image is not None and not is_blank(image)]

    found = []
    for seen in ahead(read_batch, range(rank * batch_size, len(plan), world_size * batch_size)):
        if seen:
            predictions = detect([image for _, image in seen])
            found += [tile_findings(plan, tile, p, selection) for (tile, _), p in zip(seen, predictions, strict=True)]
    return TileFindings(
        np.concatenate([np.zeros((0, 7)), *(part.detections for part in found)]),
        np.concatenate([np.zeros((0, 4)), *(part.tiles for part in found)]),
        np.concatenate([np.zeros((0, 3)), *(part.density for part in found)]),
    )


def is_blank(image: Image.Image) -> bool:
    """Whether all pixels are the same: there is nothing to find."""
    extremes = image.getextrema()
    return all(low == high for low, high in extremes)  # type: ignore[misc]


def tile_findings(plan: TilePlan, tile: int, prediction: ImagePrediction, selection: Selection) -> TileFindings:
    """The detections of one tile in px of the image, and its share of the counts."""
    left, top = plan.boxes[tile, :2].tolist()
    boxes = prediction.boxes.double().numpy() + np.array([left, top, left, top], np.float64)
    kept = selection.of(prediction)
    scores, labels = prediction.scores.double().numpy(), prediction.labels.double().numpy()
    columns = [np.full(len(boxes), float(tile)), *boxes.T, scores, labels]
    counts, density = _counts(plan, tile, prediction, boxes)
    return TileFindings(
        np.stack(columns, axis=1)[kept],
        np.array([[tile, prediction.num_queries, *counts]], np.float64),
        density,
    )


def merge_findings(plan: TilePlan, found: TileFindings) -> ImageFindings:
    """All tiles of an image -> the image."""
    rows = found.detections
    objects = FoundObjects(rows[:, 1:5], rows[:, 5], rows[:, 6].astype(np.int64))
    predicted, expected = (None if np.isnan(column).any() else float(column.sum()) for column in found.tiles[:, 2:].T)
    density = None
    if len(found.density):
        rows_, columns = density_grid(plan.width, plan.height)
        density = np.bincount(found.density[:, 1].astype(np.int64), found.density[:, 2], minlength=rows_ * columns)
        density = density.reshape(rows_, columns)
    return ImageFindings(
        objects=merge_tiles(plan, rows[:, 0].astype(np.int64), objects),
        predicted_count=predicted,
        expected_count=expected,
        num_queries=int(found.tiles[:, 1].sum()),
        num_tiles=len(found.tiles),
        num_blank=len(plan) - len(found.tiles),
        density=density,
    )


def _counts(
    plan: TilePlan, tile: int, prediction: ImagePrediction, boxes: np.ndarray
) -> tuple[tuple[float, float], np.ndarray]:
    """(objects by density, expected objects) of the tile's own region, NaN if unknown, and rows of its density.

    Of an image in one tile, they are those of an evaluation, which counts the density in the padding too.
    """
    x0, y0, x1, y1 = plan.own_regions[tile]
    predicted, expected = np.nan, np.nan
    rows = np.zeros((0, 3))
    if prediction.object_probability is not None:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        own = ((centres >= (x0, y0)) & (centres < (x1, y1))).all(axis=1)
        expected = float(prediction.object_probability.double().numpy()[own].sum())
    if prediction.density_map is not None:
        mass = prediction.density_map.double().numpy()
        left, top, right, bottom = plan.boxes[tile]
        visible_y, visible_x = (n * share for n, share in zip(mass.shape, prediction.density_extent, strict=True))
        y = top + (np.arange(mass.shape[0]) + 0.5) * ((bottom - top) / visible_y)
        x = left + (np.arange(mass.shape[1]) + 0.5) * ((right - left) / visible_x)
        own_y, own_x = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
        mass = mass[own_y][:, own_x]
        predicted = float(mass.sum())
        grid = density_grid(plan.width, plan.height)
        row, column = y[own_y] * grid[0] // plan.height, x[own_x] * grid[1] // plan.width
        cell = (row[:, None] * grid[1] + column).astype(np.int64)
        totals = np.bincount(cell.ravel(), mass.ravel(), minlength=grid[0] * grid[1])
        seen = np.unique(cell)
        rows = np.stack([np.full(len(seen), float(tile)), seen, totals[seen]], axis=1)
    if len(plan) == 1:
        predicted = np.nan if prediction.predicted_count is None else prediction.predicted_count
        expected = np.nan if prediction.expected_count is None else prediction.expected_count
    return (predicted, expected), rows
