"""What prediction knows of an image: the record that is appended to a part file, and that every output is made from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie on the ground."""

    crs: str
    """Coordinate reference system: "EPSG:32633", or WKT where it has no code"""
    transform: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: x = a * column + b * row + c, y = d * column + e * row + f; (0, 0) is the corner of the first
    pixel, not its centre"""


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """Objects found in an image, best first."""

    boxes: np.ndarray
    """(N, 4) float64 xyxy px of the source image, never rounded"""
    scores: np.ndarray
    """(N,) float64"""
    labels: np.ndarray
    """(N,) int64, 0 .. num_classes - 1"""

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Result of one source image: what was found, or why it was skipped."""

    image_id: int
    """Of a COCO source; else the image's position among the sources, from 1"""
    path: str
    """As a COCO source names it; else relative to the folder, glob or list that named it, with forward slashes"""
    file: str
    """Path of the file as it was opened"""
    width: int
    """px of the frame that the boxes refer to (EXIF applied); 0 if skipped before it was known"""
    height: int
    status: Literal["done", "skipped"]
    reason: str = ""
    """Why it was skipped"""
    objects: FoundObjects | None = None
    """None if skipped"""
    predicted_count: float | None = None
    """Objects by the density map, over the tiles' own regions; None without a density map"""
    expected_count: float | None = None
    """Sum of the corrected scores of every query; None where scores cannot be corrected"""
    num_queries: int = 0
    """Over all tiles"""
    num_tiles: int = 0
    """Tiles that the detector saw"""
    num_blank: int = 0
    """Tiles skipped because they are constant or hold no data"""
    density: np.ndarray | None = None
    """(h, w) float32 objects per cell of a coarse grid over the whole image, at most 256 cells a side; for pictures"""
    georeference: Georeference | None = None
    seconds: float = 0.0
