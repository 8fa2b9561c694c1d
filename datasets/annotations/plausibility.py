"""What only all boxes of a file together show: another box convention, odd areas, repeated objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.annotations.columns import ObjectColumns
from datasets.findings import Findings

FEWEST = 5
"""Boxes needed to detect a convention."""
SOME = 12
"""Boxes of which a fifth beyond the image, not half of them, is evidence for corners."""
MANY = 20
"""Boxes whose order alone is evidence for corners."""
IMAGES = 10
"""Images; if so many have all boxes in the same quarter, it is no coincidence."""


def recompute_zero_areas(objects: ObjectColumns, path: Path, findings: Findings) -> None:
    """Replace an `area` of 0 by width times height, in place.

    `area` decides in which size class an object is evaluated.
    """
    areas, products = objects.areas, objects.boxes[:, 2] * objects.boxes[:, 3]
    zero = (areas == 0) & (products > 0)
    if not zero.any():
        return
    areas[zero] = products[zero]
    message = (
        f"{path}: annotations: {zero.sum():,} objects have area 0 beside a sound box, such as bbox "
        f"{objects.boxes[zero.argmax()].tolist()}: width times height"
    )
    findings.add("fixed", "area_zero", message, count=int(zero.sum()))


def check_areas(objects: ObjectColumns, path: Path, findings: Findings) -> None:
    """Warn of areas that do not fit the box: larger than it, or in many objects below a hundredth of it.

    Masks are smaller than boxes, thin diagonal ones much smaller, rounded ones a little larger.
    """
    if len(objects.areas) == 0:
        return
    products = objects.boxes[:, 2] * objects.boxes[:, 3]
    odd = objects.areas > 2 * products + 1
    small = (objects.areas < products / 100) & (objects.areas > 0)
    if small.mean() > 0.1:
        odd |= small
    if odd.any():
        first = int(odd.argmax())
        message = (
            f"{path}: annotations: the area of {odd.sum():,} objects is far from their box, such as "
            f"{objects.areas[first]:g} px^2 beside bbox {objects.boxes[first].tolist()}; it decides in which size "
            "class they are evaluated: write it in px^2 or omit the field"
        )
        findings.add("warning", "area_far_from_box", message, count=int(odd.sum()))


def check_box_convention(
    boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray, path: Path, findings: Findings
) -> None:
    """Errors for boxes that look like fractions of the image or like corners, by shares: single odd boxes are usual.

    boxes (N, 4) xywh px, sizes (I, 2) height, width of the images, owner (N,) the image of each box

    Fractions: a tenth of the boxes are narrower or lower than one pixel and lie in the top left pixel of a larger
    image, where sound boxes are rare.

    Corners: nine tenths of the boxes, or of those of images with five and more, are wider than their x and higher than
    their y, and would be corners inside the image. That holds for sound boxes too where objects are as large as the
    image, so one of two further signs is required. Boxes leave the image: sound ones do not, and those beyond several
    borders are no corners inside it. Or width grows with x and height with y, relative to the image, in at least 20
    boxes: of corners of small objects they are nearly equal, of sound boxes independent of each other, or one limits
    the other.
    """
    if len(boxes) < FEWEST:
        return
    fractions = _look_like_fractions(boxes, sizes, owner)
    if fractions.sum() >= FEWEST and fractions.mean() >= 0.1:
        first = boxes[int(fractions.argmax())].tolist()
        message = (
            f"{path}: annotations: no bbox value is above 1 in {fractions.sum():,} of {len(boxes):,} boxes (the first "
            f"is {first}): normalised boxes? Multiply them by the image's width and height"
        )
        findings.add("error", "normalised_boxes", message)
    outside = _leave_image(boxes, sizes, owner)
    for chosen in _look_like_corners(boxes, sizes, owner):
        count, leaving = int(chosen.sum()), outside[chosen]
        if leaving.mean() > (0.2 if count >= SOME else 0.5) or (
            count >= MANY and _grow_with_position(boxes[chosen], sizes[owner[chosen], ::-1])
        ):
            message = (
                f"{path}: annotations: {count:,} of {len(boxes):,} boxes are wider than their x and higher than their "
                f"y, and {leaving.sum():,} of {count:,} boxes leave their image (the first is "
                f"{boxes[int(chosen.argmax())].tolist()}): x1, y1, x2, y2 written as x, y, width, height? "
                "Write [x1, y1, x2 - x1, y2 - y1]"
            )
            findings.add("error", "corner_boxes", message)
            return
    if outside.sum() >= FEWEST and outside.mean() > 0.1:
        message = (
            f"{path}: annotations: {outside.sum():,} of {len(boxes):,} boxes leave their image, such as "
            f"{boxes[int(outside.argmax())].tolist()}; are they [x, y, width, height] in px of this image?"
        )
        findings.add("warning", "boxes_leave_image", message, count=int(outside.sum()))
    _warn_of_one_quarter(boxes, sizes, owner, path, findings)


def _warn_of_one_quarter(
    boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray, path: Path, findings: Findings
) -> None:
    """Warn if nearly all images have all of their boxes in the top left quarter; by chance one in four has.

    Percentages in larger images look so, and boxes of images that were enlarged later.
    """
    beyond = np.zeros(len(boxes), dtype=bool)
    for k in (0, 1):
        beyond |= boxes[:, k] + boxes[:, 2 + k] > sizes[owner, 1 - k] / 2
    with_boxes = np.bincount(owner, minlength=len(sizes)) > 0
    within = with_boxes & (np.bincount(owner[beyond], minlength=len(sizes)) == 0)
    if within.sum() >= IMAGES and within.sum() >= 0.95 * with_boxes.sum():
        message = (
            f"{path}: annotations: all boxes of {within.sum():,} of {with_boxes.sum():,} images lie in the top left "
            f"quarter (the first is {boxes[0].tolist()}): percentages, or boxes of images of another size? Write "
            "them in px of the image as it is"
        )
        findings.add("warning", "boxes_in_a_quarter", message, count=int(within.sum()))


def _look_like_fractions(boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(N,) bool"""
    unit = (boxes <= 1).all(axis=1) & (boxes[:, 2:] < 1).any(axis=1) & (boxes[:, :2] > -1).all(axis=1)
    large = np.asarray((sizes > 2).all(axis=1))
    return np.asarray(unit & large[owner])


def _leave_image(boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(N,) bool: by more than a pixel, to the right or to the bottom."""
    right, bottom = (boxes[:, k] + boxes[:, 2 + k] > sizes[owner, 1 - k] + 1 for k in (0, 1))
    return right | bottom


def _look_like_corners(boxes: np.ndarray, sizes: np.ndarray, owner: np.ndarray) -> Iterator[np.ndarray]:
    """(N,) bool, boxes that could all be corners: of the whole file, or of the images of which it is nearly all."""
    possible = np.ones(len(boxes), dtype=bool)
    for k in (0, 1):
        low, high, limit = boxes[:, k], boxes[:, 2 + k], sizes[owner, 1 - k]
        possible &= (low >= -1) & (high > low) & (high <= limit + 1)
    if possible.mean() >= 0.9:
        yield possible
        return
    counts = np.bincount(owner, minlength=len(sizes))
    corners = np.bincount(owner[possible], minlength=len(sizes))
    images = (counts >= FEWEST) & (corners >= 0.9 * counts)
    chosen = possible & images[owner]
    if chosen.sum() >= max(MANY, 0.1 * len(boxes)):
        yield chosen


def _grow_with_position(boxes: np.ndarray, limits: np.ndarray) -> bool:
    """Whether width and x, and height and y, correlate; boxes (N, 4), limits (N, 2) width, height."""
    for k in (0, 1):
        position, size = boxes[:, k] / limits[:, k], boxes[:, 2 + k] / limits[:, k]
        if min(position.std(), size.std()) < 1e-3 or np.corrcoef(position, size)[0, 1] < 0.6:
            return False
    return True


def count_repeats(boxes: np.ndarray, labels: np.ndarray, owner: np.ndarray, path: Path, findings: Findings) -> None:
    """Warn of objects that repeat image, class and box of an earlier one."""
    columns: list[np.ndarray] = [*boxes.view(np.uint64).T, labels.astype(np.uint64), owner.astype(np.uint64)]
    mixed = np.zeros(len(boxes), dtype=np.uint64)
    for column in columns:  # equal objects have equal hashes, others almost never
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    near = np.nonzero(mixed[order[1:]] == mixed[order[:-1]])[0]
    later, earlier = order[near + 1], order[near]
    repeated = later[np.all([column[later] == column[earlier] for column in columns], axis=0)]
    if len(repeated):
        first = boxes[repeated[0]].tolist()
        message = (
            f"{path}: annotations: {len(repeated)} objects repeat another object of their image exactly, such as bbox "
            f"{first}; remove them unless they are meant"
        )
        findings.add("warning", "repeated_object", message, count=len(repeated))
