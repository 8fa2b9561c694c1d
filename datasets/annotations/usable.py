"""Which objects of an annotation file are trained on, and their boxes inside the image."""

import numpy as np

from datasets.annotations.table import AnnotationTable


def find_usable(table: AnnotationTable) -> tuple[np.ndarray, dict[str, int]]:
    """Usable objects, (N,) bool, and how many are not, by reason.

    Source: mmdet CocoDataset.parse_data_info and Resize's clipping.
    """
    limits = np.repeat(table.sizes[:, ::-1], np.diff(table.first_object), axis=0)
    low, size = table.boxes[:, :2], table.boxes[:, 2:]
    reasons = {
        "crowd": table.crowd,
        "ignored": table.ignored,
        "below_one_pixel": (size < 1).any(axis=1),
        # A sliver below 0.01 px would have zero width in float32.
        "outside_image": (np.minimum(low + size, limits) - np.maximum(low, 0) < 0.01).any(axis=1),
    }
    usable = np.ones(len(table.boxes), dtype=bool)
    dropped = {}
    for reason, found in reasons.items():
        dropped[reason] = int((found & usable).sum())
        usable &= ~found
    return usable, {reason: count for reason, count in dropped.items() if count}


def owners_of(table: AnnotationTable, objects: np.ndarray) -> np.ndarray:
    """(N,) places in the table of the images of the objects."""
    return np.repeat(np.arange(len(table.sizes)), np.diff(table.first_object))[objects]


def clipped_corners(table: AnnotationTable, owners: int | np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(N, 4) float64 xyxy px of the objects, clipped to their images, which are one or N."""
    boxes, limits = table.boxes[objects], table.sizes[owners, ::-1]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.concatenate([np.clip(low, 0, limits), np.clip(high, 0, limits)], axis=1)


def clipped_sizes(table: AnnotationTable, owners: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(N, 2) width, height px of the objects, clipped to their images."""
    corners = clipped_corners(table, owners, objects)
    return corners[:, 2:] - corners[:, :2]
