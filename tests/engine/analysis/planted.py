"""A simulated detector with queries, and faults to plant in it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.analysis.causes import QueryStarts
from engine.metrics.average_precision import ImageRecord

Image = tuple[ImageRecord, QueryStarts]
SIDE, CLASSES, BUDGET, TOKENS = 800.0, 4, 150, 12000


def simulate(
    seed: int, images: int = 6, objects: int = 70, *, budget: int = BUDGET, shuffled: bool = False
) -> list[Image]:
    """Images whose proposals are on the objects, two each, then anywhere; a query near an object becomes a hit of it.

    shuffled   rank the proposals at random
    """
    rng = np.random.default_rng(seed)
    found = []
    for image_id in range(1, images + 1):
        cells = rng.permutation(18 * 18)[:objects]
        centres = np.stack([cells % 18, cells // 18], axis=1) * 44 + 12 + rng.uniform(-1, 1, (objects, 2))
        sizes = rng.uniform(6, 9, (objects, 2))
        labels = rng.integers(0, CLASSES, objects)
        own = np.concatenate([centres, centres]) + rng.normal(0, 1, (2 * objects, 2))
        tokens = np.concatenate([own, rng.uniform(0, SIDE, (TOKENS, 2))])
        if shuffled:
            tokens = rng.permutation(tokens)
        starts = tokens[:budget]
        found.append((_detect(rng, image_id, centres, sizes, labels, starts), _starts(tokens, budget)))
    return found


def _starts(tokens: np.ndarray, budget: int) -> QueryStarts:
    return QueryStarts(tokens[: 2 * budget].astype(np.float32), budget, np.arange(budget))


def _detect(
    rng: np.random.Generator,
    image_id: int,
    centres: np.ndarray,
    sizes: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
) -> ImageRecord:
    distance = np.hypot(*(starts[:, None] - centres).transpose(2, 0, 1))
    nearest = distance.argmin(axis=1)
    first = np.zeros(len(starts), np.bool_)
    first[np.unique(np.where(distance.min(axis=1) <= 8, nearest, -1), return_index=True)[1]] = True
    hit = first & (distance.min(axis=1) <= 8)
    middle = np.where(hit[:, None], centres[nearest] + rng.normal(0, 0.2, starts.shape), starts)
    size = np.where(hit[:, None], sizes[nearest], 7)
    score = np.where(hit, rng.uniform(0.35, 0.55, len(starts)), rng.uniform(0, 0.1, len(starts)))
    return ImageRecord(
        image_id=image_id,
        gt_boxes=np.concatenate([centres - sizes / 2, sizes], axis=1),
        gt_labels=labels,
        gt_areas=sizes.prod(axis=1),
        gt_crowd=np.zeros(len(labels), np.bool_),
        boxes=np.concatenate([middle - size / 2, size], axis=1),
        scores=score,
        labels=np.where(hit, labels[nearest], rng.integers(0, CLASSES, len(starts))),
    )


def changed(images: list[Image], change: Callable[[ImageRecord], ImageRecord]) -> list[Image]:
    return [(change(record), starts) for record, starts in images]


def shifted(record: ImageRecord) -> ImageRecord:
    """All detections 2 px to the right and 2 px down: boxes of 6 to 9 px then have an IoU of 0.29 to 0.43."""
    return replace(record, boxes=record.boxes + np.array([2, 2, 0, 0]))


def permuted(record: ImageRecord) -> ImageRecord:
    return replace(record, labels=(record.labels + 1) % CLASSES)


def halved(record: ImageRecord) -> ImageRecord:
    return replace(record, scores=record.scores / 2)
