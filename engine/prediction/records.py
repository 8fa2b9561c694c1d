"""What prediction knows of an image: the record that is appended to a part file, and that every output is made from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets.structures import Georeference


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
    """Sum of the corrected probabilities of an object, over the tiles' own regions; None where there are none"""
    num_queries: int = 0
    """Over all tiles"""
    num_tiles: int = 0
    """Tiles that the detector saw"""
    num_blank: int = 0
    """Tiles skipped because they are constant or hold no data"""
    georeference: Georeference | None = None
    turned: bool = False
    """Whether a camera's rotation (EXIF) was undone"""
    seconds: float = 0.0
