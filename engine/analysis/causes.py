"""Why a detector with queries missed an object, at one score threshold.

An object is missed if no detection of at least that score has it. The first cause that fits:

    budget    never queried, and more queries would have helped: twice as many reach it, or the image has more objects
              than queries, so that a perfect ranking misses some too
    ranking   never queried, although the budget was large enough: its proposals were ranked too low
    class     a detection with the score lies on it (IoU >= 0.5), of another class
    box       a detection with the score and of its class lies beside it (0.1 <= IoU < 0.5): off by some pixels
    score     a query was there, but what it became is scored below the threshold

An object is queried if a query started within reach of its centre, max(8 px, the object's longer side), or ended on it
(IoU >= 0.5). A query that has found another object does not count: it can find one only. Where it is not known where
queries started, objects are never "never queried", and what has no detection of its class at all (IoU >= 0.1) has the
cause "nothing".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.analysis.errors import BACKGROUND_IOU, FOREGROUND_IOU, ImageErrors
from engine.analysis.overlap import Pairs
from engine.metrics.records import BoolArray, FloatArray, ImageRecord, IntArray

CAUSES = ("budget", "ranking", "score", "class", "box", "nothing")
_BUDGET, _RANKING, _SCORE, _CLASS, _BOX, _NOTHING = range(len(CAUSES))
HIT = -1
"""Cause of an object that was found"""
NEVER_QUERIED = ("budget", "ranking")
REACH = 8.0
"""Least distance between a query's start and an object's centre that counts as near, px"""


@dataclass(frozen=True, eq=False)
class QueryStarts:
    """Where the queries of an image started, and where those of a budget twice as large would have."""

    centres: NDArray[np.float32]
    """(R, 2) x, y in px of the file, best ranked first: Q queries, then up to Q proposals that were not selected"""
    num_queries: int
    """Q"""
    of_detection: IntArray
    """(D,) query of each detection of the record"""


@dataclass(frozen=True, eq=False)
class ObjectCauses:
    """For the G objects of an image, those of `ImageErrors.objects`."""

    causes: NDArray[np.int8]
    """(G,) index in CAUSES, or HIT"""
    near: IntArray
    """(G,) detection of a "class" or "box" miss: index in the listed ones; -1 for others"""
    offsets: FloatArray
    """(G, 4) of a "box" miss: detection less object, centre x, y, width, height, px; NaN for others"""


def find_causes(
    record: ImageRecord, errors: ImageErrors, starts: QueryStarts | None, *, score_threshold: float
) -> ObjectCauses:
    """The causes of one image; starts are None where they are not known."""
    boxes, labels = record.gt_boxes[errors.objects], record.gt_labels[errors.objects]
    confident = record.scores[errors.rows] >= score_threshold
    found = errors.taken_by >= 0
    found[found] = confident[errors.taken_by[found]]
    spent = confident & (errors.match >= 0)  # detections that have their object

    pairs = errors.pairs.where(~found[errors.pairs.column] & ~spent[errors.pairs.row])
    same = record.labels[errors.rows][pairs.row] == labels[pairs.column]
    sure, on, beside = confident[pairs.row], pairs.iou >= FOREGROUND_IOU, pairs.iou >= BACKGROUND_IOU
    wrong = _nearest(pairs, sure & on & ~same, len(labels))
    off = _nearest(pairs, sure & beside & ~on & same, len(labels))
    code = np.select([wrong >= 0, off >= 0], [_CLASS, _BOX], _SCORE)
    if starts is None:
        seen = np.bincount(pairs.column[beside & same], minlength=len(labels)) > 0
        code[(code == _SCORE) & ~seen] = _NOTHING
    else:
        ended_there = np.bincount(pairs.column[on], minlength=len(labels)) > 0
        unused = np.ones(starts.num_queries, np.bool_)
        unused[starts.of_detection[errors.rows[spent]]] = False
        never, short = _never_queried(boxes, starts, unused, ~found & ~ended_there)
        code[never] = np.where(short[never], _BUDGET, _RANKING)
    code[found] = HIT
    near = np.select([code == _CLASS, code == _BOX], [wrong, off], -1)
    offsets = _offsets(record.boxes[errors.rows], boxes, np.where(code == _BOX, near, -1))
    return ObjectCauses(code.astype(np.int8), near, offsets)


def _nearest(pairs: Pairs, chosen: BoolArray, objects: int) -> IntArray:
    """(objects,) row of the highest IoU among the chosen pairs, -1 without one; among equals, the better score."""
    row, column, iou = pairs.row[chosen], pairs.column[chosen], pairs.iou[chosen]
    order = np.lexsort((row, -iou, column))
    nearest = np.full(objects, -1)
    seen, first = np.unique(column[order], return_index=True)
    nearest[seen] = row[order[first]]
    return nearest


def _never_queried(
    boxes: FloatArray, starts: QueryStarts, unused: BoolArray, missed: BoolArray
) -> tuple[BoolArray, BoolArray]:
    """Which missed objects were never queried, and for which of them the budget was too small, both (G,)."""
    centres, reach = boxes[:, :2] + boxes[:, 2:] / 2, np.maximum(boxes[:, 2:].max(axis=1, initial=0), REACH)
    rank = np.full(len(boxes), np.inf)  # of the first proposal beyond the budget that is within reach
    never = np.zeros(len(boxes), np.bool_)
    for index in np.flatnonzero(missed):
        near = np.hypot(*(starts.centres - centres[index]).T) <= reach[index]
        never[index] = not (near[: starts.num_queries] & unused).any()
        beyond = np.flatnonzero(near[starts.num_queries :])
        rank[index] = beyond[0] if len(beyond) else np.inf
    without = np.flatnonzero(never)
    surplus = max(len(boxes) - starts.num_queries, 0)  # objects that a perfect ranking misses
    short = never & np.isfinite(rank)
    short[without[np.argsort(rank[without], kind="stable")][:surplus]] = True
    return never, short


def _offsets(detections: FloatArray, boxes: FloatArray, near: IntArray) -> FloatArray:
    """(D, 4), (G, 4) xywh, (G,) detection of each object or -1 -> (G, 4) difference of centre and size, else NaN."""
    offsets = np.full((len(boxes), 4), np.nan)
    chosen = near >= 0
    size = detections[near[chosen], 2:] - boxes[chosen, 2:]
    corner = detections[near[chosen], :2] - boxes[chosen, :2]
    offsets[chosen] = np.concatenate([corner + size / 2, size], axis=1)
    return offsets
