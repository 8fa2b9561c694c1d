"""Images of the page: which ones, their thumbnails, and what is drawn on them."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.analysis.causes import CAUSES, HIT, ObjectCauses, QueryStarts
from engine.analysis.errors import CORRECT, FALSE_POSITIVES, IGNORED, ImageErrors
from engine.metrics.records import FloatArray, ImageRecord

MOST_IMAGES = 60
SIDE = 640
"""Longest side of a thumbnail, px"""
THUMBNAIL_BYTES = 5 << 20
"""Of all thumbnails of a page, before base64"""
QUALITIES = (85, 75, 65, 50)
MOST_STARTS = 1500
"""Query starts drawn on an image"""


@dataclass(frozen=True, eq=False)
class DensityLayer:
    """A density map in little memory."""

    cells: NDArray[np.uint8]
    """(h, w) 255 at the peak"""
    peak: float
    """Objects per cell"""


def density_layer(density_map: NDArray[np.float32], extent: tuple[float, float], *, side: int = 64) -> DensityLayer:
    """The part of a map (h, w) that the image covers, extent (height, width) in (0, 1], with at most `side` cells."""
    height, width = (max(1, round(n * share)) for n, share in zip(density_map.shape, extent, strict=True))
    covered = Image.fromarray(np.ascontiguousarray(density_map[:height, :width], np.float32))
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cells = np.asarray(covered.resize(size, Image.Resampling.BOX), np.float64).clip(0)
    peak = float(cells.max())
    if not np.isfinite(peak) or peak <= 0:
        return DensityLayer(np.zeros(cells.shape, np.uint8), 0.0)
    return DensityLayer((255 * cells / peak).round().astype(np.uint8), peak)


@dataclass(frozen=True, eq=False)
class Shown:
    """One image of the gallery, everything in px of the file."""

    record: ImageRecord
    errors: ImageErrors
    causes: ObjectCauses
    starts: QueryStarts | None
    score_threshold: float
    image: Callable[[], Image.Image]
    name: str
    queries: int | None
    estimate: float | None
    density: DensityLayer | None


def chosen_images(
    missed: np.ndarray, false_alarms: np.ndarray, count_errors: np.ndarray, objects: np.ndarray, wanted: int
) -> list[int]:
    """Indices of the images of a gallery, ascending: a third each with the most misses and the most false alarms, a
    sixth with the largest count errors, the rest evenly over the object counts; all (I,)."""
    if len(missed) <= wanted:
        return list(range(len(missed)))
    chosen: dict[int, None] = {}
    for values, until in ((missed, wanted // 3), (false_alarms, 2 * wanted // 3), (count_errors, 5 * wanted // 6)):
        for index in np.argsort(-values, kind="stable").tolist():
            if len(chosen) >= until:
                break
            chosen[index] = None
    by_count = np.argsort(objects, kind="stable")
    rest = [index for index in by_count.tolist() if index not in chosen]
    left = wanted - len(chosen)
    chosen |= dict.fromkeys(rest[round(i * (len(rest) - 1) / max(left - 1, 1))] for i in range(left))
    return sorted(chosen)


def gallery_images(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The images as JSON types, thumbnails as data URIs; boxes are [x, y, width, height, class, kind, score]."""
    thumbnails = encode_thumbnails([each.image for each in shown])
    return [_entry(each, *thumbnail) for each, thumbnail in zip(shown, thumbnails, strict=True)]


def encode_thumbnails(images: Sequence[Callable[[], Image.Image]]) -> list[tuple[str, int, int]]:
    """Data URI, width and height of the source of each image.

    In the best quality that keeps all near THUMBNAIL_BYTES, as a sample of them says.
    """
    small: list[tuple[Image.Image, int, int]] = []
    for read in images:
        image = read().convert("RGB")
        size = image.size
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.append((image, *size))
    sample = [image for image, _, _ in small[:: max(1, len(small) // 6)]]
    for shrink, quality in product((1.0, 0.7, 0.5), QUALITIES):  # the last one if none fits
        mean = sum(len(_webp(image, shrink, quality)) for image in sample) / max(len(sample), 1)
        if mean * len(small) <= THUMBNAIL_BYTES:
            break
    uris = [
        "data:image/webp;base64," + base64.b64encode(_webp(image, shrink, quality)).decode() for image, _, _ in small
    ]
    return [(uri, width, height) for uri, (_, width, height) in zip(uris, small, strict=True)]


def _webp(image: Image.Image, shrink: float, quality: int) -> bytes:
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    file = io.BytesIO()
    (image if shrink == 1 else image.resize(size, Image.Resampling.LANCZOS)).save(file, "WEBP", quality=quality)
    return file.getvalue()


def _entry(shown: Shown, uri: str, width: int, height: int) -> dict[str, Any]:
    record, errors, causes = shown.record, shown.errors, shown.causes
    missed = np.flatnonzero(causes.causes != HIT)
    hits = errors.rows[errors.taken_by[causes.causes == HIT]]
    wrong = (record.scores[errors.rows] >= shown.score_threshold) & ~np.isin(errors.types, (CORRECT, IGNORED))
    alarms, codes = errors.rows[wrong], {code: name for name, code in FALSE_POSITIVES.items()}
    objects = errors.objects[missed]
    return {
        "name": shown.name,
        "width": width,
        "height": height,
        "uri": uri,
        "objects": len(causes.causes),
        "queries": shown.queries,
        "estimate": None if shown.estimate is None else round(shown.estimate, 1),
        "hits": _rows(record.boxes[hits], record.labels[hits], [""] * len(hits), record.scores[hits]),
        "misses": _rows(
            record.gt_boxes[objects], record.gt_labels[objects], [CAUSES[c] for c in causes.causes[missed]], None
        ),
        "alarms": _rows(
            record.boxes[alarms], record.labels[alarms], [codes[c] for c in errors.types[wrong]], record.scores[alarms]
        ),
        "starts": [] if shown.starts is None else _starts(shown.starts),
        "density": None if shown.density is None else _density(shown.density),
    }


def _rows(boxes: FloatArray, labels: np.ndarray, kinds: Sequence[str], scores: FloatArray | None) -> list[list[Any]]:
    known = [None] * len(boxes) if scores is None else [round(score, 2) for score in scores.tolist()]
    columns = zip(boxes.round(1).tolist(), labels.tolist(), kinds, known, strict=True)
    return [[*box, label, kind, score] for box, label, kind, score in columns]


def _starts(starts: QueryStarts) -> list[list[float]]:
    return starts.centres[: min(starts.num_queries, MOST_STARTS)].astype(np.float64).round(1).tolist()


def _density(density: DensityLayer) -> dict[str, Any]:
    height, width = density.cells.shape
    cells = base64.b64encode(density.cells.tobytes()).decode()
    return {"width": width, "height": height, "cells": cells, "peak": round(density.peak, 3)}
