"""Detections of overlapping tiles -> detections of the image, without loss or double at the seams.

Only detections of different tiles are compared: dense neighbours inside a tile stay, as in an image that was not cut.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from engine.prediction.records import FoundObjects
from engine.prediction.tiles import WIDENING, TilePlan

COVERED = 0.5
"""Share of the smaller of two boxes from which on a whole box stands for one that its tile's border cut"""
SAME_IOU = 0.5
"""IoU of two tiles' detections of one object"""
SAME_CENTRE = 0.5
"""Distance of the centres of two tiles' detections of one object, over the smaller one's sides"""
CUT = 1.0
"""A box that ends this close to its tile's border may be cut by it, px of the source image"""
CHUNK = 8192
"""Queries of the tree at a time, which bounds the memory of its answer"""


def merge_tiles(plan: TilePlan, tile: np.ndarray, found: FoundObjects) -> FoundObjects:
    """The detections of all tiles of an image, best first; those of a single tile as they are.

    tile    (N,) int64 tile of each detection
    found   N detections in px of the image

    A detection is kept if its centre lies in its tile's widened region, unless
    - it is cut by its tile's border, and a whole one of its class, of another tile, covers it, or
    - a better one of its class, of another tile, is the same object: IoU, or centres close together.
    """
    if len(plan) == 1:
        return found
    inside = np.nonzero(_contains(plan.widened_regions[tile], found.boxes))[0]
    tile, boxes, scores, labels = tile[inside], found.boxes[inside], found.scores[inside], found.labels[inside]
    order = np.lexsort((tile, -scores))  # of equal scores, the earlier tile's
    tile, boxes, scores, labels = tile[order], boxes[order], scores[order], labels[order]
    alive = np.ones(len(boxes), np.bool_)
    if len(boxes) > 1:
        cut = _is_cut(plan, tile, boxes)
        first, second = _pairs(plan, tile, boxes, labels)
        alive[_covered(boxes, cut, first, second)] = False
        _suppress(boxes, first, second, alive)
    return FoundObjects(boxes[alive], scores[alive], labels[alive])


def _contains(regions: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) whether each box's centre lies in its region; the right and lower borders do not belong to it."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= regions[:, :2]) & (centres < regions[:, 2:])).all(axis=1)


def _is_cut(plan: TilePlan, tile: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) whether a box ends at a border of its tile that is not the image's."""
    edges = plan.boxes[tile]
    inner = edges != np.array([0, 0, plan.width, plan.height])
    reach = np.abs(boxes - edges) <= CUT
    return (inner & reach).any(axis=1)


def _pairs(plan: TilePlan, tile: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detections of one class in different tiles that may overlap: the better one's place, the other's; by the better.

    Two overlapping boxes have centres no further apart, along each axis, than the larger one's side, so that each pair
    is found from its larger box; and of those, only boxes that reach across a seam can have a partner.
    """
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    own = plan.own_regions[tile]
    inner = own != np.array([0, 0, plan.width, plan.height])
    distance = np.where(inner, np.abs(np.concatenate([centres, centres], axis=1) - own), np.inf).min(axis=1)
    near = np.nonzero(distance <= sides + WIDENING)[0]
    if len(near) < 2:
        return near[:0], near[:0]
    # Partners lie near a seam too: the smaller of a pair is within its larger one's side of it.
    reach = float(sides[near].max()) + WIDENING
    candidates = np.nonzero(distance <= reach)[0]
    tree = cKDTree(centres[candidates])
    found = [
        _unlike(tree, near[start : start + CHUNK], candidates, centres, sides, tile, labels)
        for start in range(0, len(near), CHUNK)
    ]
    pairs = np.unique(np.concatenate(found), axis=0)  # by the better one; twice where both have the same size
    return pairs[:, 0], pairs[:, 1]


def _unlike(
    tree: cKDTree,
    near: np.ndarray,
    candidates: np.ndarray,
    centres: np.ndarray,
    sides: np.ndarray,
    tile: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """(P, 2) pairs of some detections with smaller ones of their class in other tiles, ascending places."""
    answers = tree.query_ball_point(centres[near], sides[near], p=np.inf, return_sorted=False)
    counts = np.fromiter(map(len, answers), np.int64, len(answers))
    mine = np.repeat(near, counts)
    theirs = candidates[np.fromiter(_flat(answers), np.int64, int(counts.sum()))]
    fits = (tile[mine] != tile[theirs]) & (labels[mine] == labels[theirs]) & (sides[theirs] <= sides[mine])
    return np.sort(np.stack([mine[fits], theirs[fits]], axis=1), axis=1)


def _flat(answers: np.ndarray) -> Iterator[int]:
    for answer in answers:
        yield from answer


def _covered(boxes: np.ndarray, cut: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Places of cut boxes that a whole one covers."""
    one_cut = cut[first] != cut[second]
    first, second = first[one_cut], second[one_cut]
    intersection, area, other_area = _areas(boxes, first, second)
    covers = intersection >= COVERED * np.minimum(area, other_area)
    return np.where(cut[first], first, second)[covers & (intersection > 0)]


def _suppress(boxes: np.ndarray, first: np.ndarray, second: np.ndarray, alive: np.ndarray) -> None:
    """Drop, best first, what is the same object as a better one that stays."""
    intersection, area, other_area = _areas(boxes, first, second)
    same = intersection >= SAME_IOU * np.maximum(area + other_area - intersection, 1e-12)
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    smaller = np.where((area <= other_area)[:, None], sizes[first], sizes[second])
    same |= (np.abs(centres[first] - centres[second]) <= SAME_CENTRE * smaller).all(axis=1)
    for better, worse in zip(first[same].tolist(), second[same].tolist(), strict=True):
        if alive[better]:
            alive[worse] = False


def _areas(boxes: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection of each pair, and the areas of both."""
    one, other = boxes[first], boxes[second]
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    area, other_area = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (one, other))
    return np.prod(sides.clip(min=0), axis=1), area, other_area
