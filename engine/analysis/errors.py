"""What is wrong with each detection, and what would have reached each missed object: the error types of TIDE.

Detections are matched as the evaluator does at an IoU of t_f: by falling score, each takes the free object of its class
with the highest IoU. Each false positive then has the first type that fits:

    localisation     t_b <= IoU <= t_f with an object of its class
    classification   IoU >= t_f with an object of another class
    duplicate        IoU > t_f with an object of its class, which a better detection has
    background       IoU <= t_b with every object
    both             all others: wrong class and IoU between t_b and t_f

A free object that is the best overlap of a localisation or classification error is reached by it; the best-scored of
these detections is the one to fix. All other missed objects are missed. Differences from `tidecv`: docs/analysis.md.

Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.analysis.overlap import Pairs, overlapping
from engine.metrics.records import ImageRecord, IntArray

CORRECT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH, IGNORED = range(7)
"""Of a detection; ignored: in a crowd region, neither right nor wrong"""
FALSE_POSITIVES = {
    "localisation": LOCALISATION,
    "classification": CLASSIFICATION,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
    "both": BOTH,
}
FOUND, REACHED_BY_LOCALISATION, REACHED_BY_CLASSIFICATION, MISSED = range(4)
"""Of an object"""
MISSES = {
    "localisation": REACHED_BY_LOCALISATION,
    "classification": REACHED_BY_CLASSIFICATION,
    "missed": MISSED,
}
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
"""t_f and t_b"""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The errors of one image: D listed detections by falling score, G objects without crowd regions."""

    rows: IntArray
    """(D,) detection in the record"""
    objects: IntArray
    """(G,) object in the record"""
    types: NDArray[np.int8]
    """(D,) CORRECT .. IGNORED"""
    match: IntArray
    """(D,) object that a correct detection has, else -1; index in G"""
    fixes: IntArray
    """(D,) object that a fix of this error would find, else -1; index in G"""
    taken_by: IntArray
    """(G,) detection that has the object, else -1; index in D"""
    misses: NDArray[np.int8]
    """(G,) FOUND .. MISSED"""
    pairs: Pairs
    """Overlaps of D with G, whatever their classes"""


def find_errors(record: ImageRecord, *, max_detections: int) -> ImageErrors:
    """Match one image and name its errors.

    max_detections   kept per image and class, the best by score
    """
    rows = listed_detections(record, max_detections)
    objects = np.flatnonzero(~record.gt_crowd)
    labels, object_labels = record.labels[rows], record.gt_labels[objects]
    pairs = overlapping(record.boxes[rows], record.gt_boxes[objects])
    same = labels[pairs.row] == object_labels[pairs.column]
    match, taken_by = match_greedily(pairs.where(same & (pairs.iou >= FOREGROUND_IOU)), len(rows), len(objects))

    (own, own_object), (other, other_object) = pairs.where(same).best(len(rows)), pairs.where(~same).best(len(rows))
    any_class = np.maximum(own, other)
    tests = [
        match >= 0,
        _in_crowd(record, rows),
        (own >= BACKGROUND_IOU) & (own <= FOREGROUND_IOU),
        other >= FOREGROUND_IOU,
        own > FOREGROUND_IOU,
        any_class <= BACKGROUND_IOU,
    ]
    codes = [CORRECT, IGNORED, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND]
    types = np.select(tests, codes, BOTH).astype(np.int8)

    wanted = np.select([types == LOCALISATION, types == CLASSIFICATION], [own_object, other_object], -1)
    fixable = np.flatnonzero((wanted >= 0) & (taken_by[wanted] < 0)) if len(objects) else np.zeros(0, np.int64)
    reached, first = np.unique(wanted[fixable], return_index=True)
    fixes = np.full(len(rows), -1)
    fixes[fixable[first]] = reached
    misses = np.where(taken_by >= 0, FOUND, MISSED).astype(np.int8)
    misses[reached] = np.where(
        types[fixable[first]] == LOCALISATION, REACHED_BY_LOCALISATION, REACHED_BY_CLASSIFICATION
    )
    return ImageErrors(rows, objects, types, match, fixes, taken_by, misses, pairs)


def listed_detections(record: ImageRecord, max_detections: int) -> IntArray:
    """The detections that count, by falling score: the best of each class; equal scores in the order of the record."""
    by_class = np.lexsort((-record.scores, record.labels))
    labels = record.labels[by_class]
    kept = np.sort(by_class[np.arange(len(labels)) - np.searchsorted(labels, labels) < max_detections])
    return kept[np.argsort(-record.scores[kept], kind="stable")]


def match_greedily(pairs: Pairs, detections: int, objects: int) -> tuple[IntArray, IntArray]:
    """The object of each detection and the detection of each object, -1 for none: each row takes its best free one."""
    taken_by, match = [-1] * objects, [-1] * detections
    for row, column in zip(pairs.row.tolist(), pairs.column.tolist(), strict=True):
        if taken_by[column] < 0 and match[row] < 0:
            taken_by[column], match[row] = row, column
    return np.array(match, np.int64), np.array(taken_by, np.int64)


def _in_crowd(record: ImageRecord, rows: IntArray) -> NDArray[np.bool_]:
    """(D,) whether the detection lies in a crowd region of its class, by a share of t_f."""
    inside = np.zeros(len(rows), np.bool_)
    if record.gt_crowd.any():
        regions = np.flatnonzero(record.gt_crowd)
        pairs = overlapping(record.boxes[rows], record.gt_boxes[regions], of_first=True)
        same = record.labels[rows][pairs.row] == record.gt_labels[regions][pairs.column]
        inside[pairs.row[same & (pairs.iou >= FOREGROUND_IOU)]] = True
    return inside
