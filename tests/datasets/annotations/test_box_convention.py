"""Boxes of another convention are recognised by shares, and sound boxes of unusual sets are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from datasets.coco import CocoDetection
from datasets.structures import DataError

Open = Callable[..., CocoDetection]
WIDTH, HEIGHT = 60, 40
LIMITS = np.array([WIDTH, HEIGHT])


def small(count: int, *, seed: int = 0, share: float = 1.0) -> np.ndarray:
    """(N, 4) xywh of objects of 3 to 9 px, whole px, anywhere in the first `share` of both sides."""
    rng = np.random.default_rng(seed)
    size = rng.integers(3, 10, (count, 2))
    return np.concatenate([np.floor(rng.uniform(0, 1, (count, 2)) * (LIMITS * share - size)), size], axis=1)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def fractions(boxes: np.ndarray) -> np.ndarray:
    return boxes / np.tile(LIMITS, 2)


def with_boxes(document: dict[str, Any], boxes: np.ndarray, images: int = 3) -> dict[str, Any]:
    """In turn on the images."""
    document["images"] = [
        {"id": k, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} for k in range(1, images + 1)
    ]
    document["annotations"] = [
        {"id": k + 1, "image_id": k % images + 1, "category_id": (2, 5, 90)[k % 3], "bbox": box}
        for k, box in enumerate(np.asarray(boxes, np.float64).tolist())
    ]
    return document


def outcome(open_dataset: Open, document: dict[str, Any], *, training: bool = True) -> list[str]:
    """Reasons of errors, or the warnings that speak of boxes."""
    try:
        dataset = open_dataset(document, training=training)
    except DataError as error:
        text = str(error)
        return [reason for reason in ("corner_boxes", "normalised_boxes") if reason in text] or [text]
    return [text for text in dataset.warnings if "boxes leave their image" in text]


def replaced(boxes: np.ndarray, outliers: list[list[float]]) -> np.ndarray:
    """The first boxes are others."""
    out = boxes.astype(np.float64)
    if outliers:
        out[: len(outliers)] = outliers
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "outliers",
    [
        [],
        [[0.2, 0.2, 1.02, 1.02]],
        [[0.2, 0.2, 2, 0.1]],
        [[10, 10, 20, 20]] * 3,
        [[0, 0, 1, 1], [-0.01, 0.5, 0.1, 0.1]],
    ],
)
def test_fractions_with_outliers(
    open_dataset: Open, document: dict[str, Any], outliers: list[list[float]], training: bool
) -> None:
    boxes = replaced(fractions(small(36)), outliers)
    assert outcome(open_dataset, with_boxes(document, boxes), training=training) == ["normalised_boxes"]


def test_fractions_beside_sound_boxes(open_dataset: Open, document: dict[str, Any]) -> None:
    """Two sets in one file."""
    boxes = np.concatenate([fractions(small(20)), small(60, seed=1)])
    assert outcome(open_dataset, with_boxes(document, boxes)) == ["normalised_boxes"]


def test_corners_as_fractions_are_both(open_dataset: Open, document: dict[str, Any]) -> None:
    boxes = corners(fractions(small(36)))
    assert outcome(open_dataset, with_boxes(document, boxes)) == ["corner_boxes", "normalised_boxes"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "outliers",
    [[], [[20, 12, 20, 19]], [[20, 12, 26, 12]] * 3, [[55, 30, 3, 4], [50, 33, 4, 5]], [[300, 10, 309, 15]]],
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_corners_with_outliers(
    open_dataset: Open, document: dict[str, Any], outliers: list[list[float]], share: float, training: bool
) -> None:
    """Thin boxes, sound ones and one far outside; where no box reaches the second half, none leaves the image."""
    boxes = replaced(corners(small(36, share=share)), outliers)
    assert outcome(open_dataset, with_boxes(document, boxes), training=training) == ["corner_boxes"]


@pytest.mark.parametrize("count", [12, 20, 200])
def test_corners_of_fewer_and_of_more(open_dataset: Open, document: dict[str, Any], count: int) -> None:
    boxes = corners(small(count, seed=3))
    assert outcome(open_dataset, with_boxes(document, boxes, images=4)) == ["corner_boxes"]


def test_corners_in_some_of_the_images(open_dataset: Open, document: dict[str, Any]) -> None:
    """Two sets in one file, and a few corners in all of the images."""
    boxes = small(120, seed=5)
    boxes[::3] = corners(boxes[::3])  # all of the first of three images
    assert outcome(open_dataset, with_boxes(document, boxes)) == ["corner_boxes"]
    boxes = small(120, seed=6)
    boxes[::4] = corners(boxes[::4])
    assert "boxes leave their image" in outcome(open_dataset, with_boxes(document, boxes))[0]


def huge(count: int, *, low: float, high: float, seed: int = 0) -> np.ndarray:
    """Objects that take `low` to `high` of both sides, anywhere inside the image."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(low, high, (count, 2)) * LIMITS
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (LIMITS - size), size], axis=1)


def centred(count: int) -> np.ndarray:
    size = np.random.default_rng(0).uniform(0.4, 0.9, (count, 2)) * LIMITS
    return np.concatenate([(LIMITS - size) / 2, size], axis=1)


def unclipped(count: int) -> np.ndarray:
    """Objects as large as the image whose centres are anywhere in it."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.5, 1.5, (count, 2)) * LIMITS
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * LIMITS - size / 2, size], axis=1)


SOUND = {
    "whole images": np.tile([0, 0, WIDTH, HEIGHT], (60, 1)),
    "one object, always there": np.tile([5, 4, 30, 20], (60, 1)),
    "huge": huge(200, low=0.5, high=1.0),
    "large": huge(200, low=0.3, high=0.7, seed=1),
    "at the corner": np.concatenate([np.full((60, 2), 1), huge(60, low=0.3, high=0.9)[:, 2:]], axis=1),
    "centred": centred(100),
    "small": small(300),
    "small, all in the first half": small(300, share=0.5),
    "one px": np.concatenate([small(100)[:, :2], np.ones((100, 2))], axis=1),
    "one px, in the corner": np.tile([0, 0, 1, 1], (60, 1)) + np.zeros((60, 4)),
    "few": np.array([[5, 4, 30, 20], [8, 8, 20, 20], [2, 2, 9, 9], [3, 1, 12, 9]]),
    "a third in the corner, below one px": np.concatenate([np.tile([0.2, 0.3, 0.6, 9], (20, 1)), small(40)]),
    "slivers at the left border": np.concatenate(
        [np.stack([np.zeros(40), np.arange(40) / 1.2, np.full(40, 0.4), np.full(40, 5)], axis=1), small(40)]
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 3, 60])
@pytest.mark.parametrize("name", SOUND)
def test_sound_sets_are_not_accused(
    open_dataset: Open, document: dict[str, Any], name: str, images: int, training: bool
) -> None:
    assert outcome(open_dataset, with_boxes(document, SOUND[name], images), training=training) == []


def test_boxes_that_are_not_clipped_are_at_most_a_warning(open_dataset: Open, document: dict[str, Any]) -> None:
    for images in (1, 60):
        found = outcome(open_dataset, with_boxes(document, unclipped(120), images))
        assert len(found) == 1
        assert "boxes leave their image" in found[0]


@pytest.mark.parametrize(("images", "spread", "warned"), [(12, 0, 1), (9, 0, 0), (40, 2, 1), (40, 3, 0)])
def test_boxes_in_one_quarter(
    open_dataset: Open, document: dict[str, Any], images: int, spread: int, warned: int
) -> None:
    """Percentages in images of 200 px, with some images that have boxes elsewhere."""
    boxes = small(images * 5, seed=4)
    boxes[:spread, :2] += 100
    with_boxes(document, boxes, images)
    for image in document["images"]:
        image |= {"width": 200, "height": 200}
    for training in (True, False):
        warnings = open_dataset(document, training=training).warnings
        assert sum("lie in the top left quarter" in text for text in warnings) == warned


def test_images_of_different_sizes(open_dataset: Open, document: dict[str, Any]) -> None:
    """Width grows with x from image to image, but not within their sides."""
    sizes = [100, 400, 1600, 3200]
    shares = fractions(huge(160, low=0.5, high=0.9))
    with_boxes(document, shares, images=4)
    for image, size in zip(document["images"], sizes, strict=True):
        image |= {"width": size, "height": size}
    for entry in document["annotations"]:
        entry["bbox"] = [value * sizes[entry["image_id"] - 1] for value in entry["bbox"]]
    assert outcome(open_dataset, document) == []


def test_a_false_alarm_is_improbable(open_dataset: Open, document: dict[str, Any]) -> None:
    """Random sets of every kind of size and number."""
    rng = np.random.default_rng(7)
    for seed in range(150):
        count, low = int(rng.integers(5, 80)), float(rng.uniform(0.02, 0.8))
        boxes = huge(count, low=low, high=float(rng.uniform(low, 1)), seed=seed)
        assert outcome(open_dataset, with_boxes(document, boxes, int(rng.integers(1, 30)))) == [], seed


def test_no_corners_go_unnoticed(open_dataset: Open, document: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    for seed in range(60):
        boxes = corners(huge(int(rng.integers(36, 200)), low=0.02, high=float(rng.uniform(0.1, 0.4)), seed=seed))
        assert outcome(open_dataset, with_boxes(document, boxes, int(rng.integers(1, 30)))) == ["corner_boxes"], seed
