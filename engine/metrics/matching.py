"""Which detections hit which objects in one image: COCOeval's greedy matching, all areas and thresholds at once.

Per class, image, area range and IoU threshold, detections by descending score each take the free object of highest
IoU. A crowd is ignored, and so is an object whose annotated area is out of range; an ignored one is taken only if no
other fits; among equal IoUs the last wins; a crowd may be taken any number of times. Equal scores keep their order.

Only detections that overlap an object of their class by the lowest threshold ("candidates") are matched and
stored threshold by threshold. All others are unmatched everywhere: false where their own area is in range, else
ignored.

Source: the algorithm of pycocotools.cocoeval (evaluateImg), restated for arrays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.metrics.records import BoolArray, FloatArray, ImageRecord, IntArray

IGNORED, FALSE_POSITIVE, TRUE_POSITIVE = 0, 1, 2

_OVERLAPS_PER_BLOCK = 1 << 18  # keeps the dense overlap test of a crowded image in the cache


@dataclass(frozen=True, eq=False)
class DetectionMatches:
    """Matched detections of one image or, joined, of many.

    D detections, C of them candidates, K classes, A areas, T IoU thresholds. Within an image the detections stand
    by class and descending score, cut to the largest limit.
    """

    labels: NDArray[np.int32]
    """(D,) class index; 0 when class-agnostic."""
    scores: FloatArray
    """(D,)"""
    ranks: NDArray[np.int32]
    """(D,) 0 for the best detection of its class in its image, or of the image: what the limits count."""
    in_area: BoolArray
    """(A, D) the detection's own w*h is in range, bounds included."""
    column: NDArray[np.int32]
    """(D,) the detection's index in C; -1 where it is no candidate."""
    states: NDArray[np.int8]
    """(A, T, C) IGNORED, FALSE_POSITIVE or TRUE_POSITIVE."""
    ious: FloatArray
    """(A, C) IoU of the match at the first threshold; 0 without one."""
    num_objects: IntArray
    """(K, A) objects that count."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Overlapping (detection, object) pairs by detection, then rising IoU, then object. All (P,)."""

    detection: IntArray
    object: IntArray
    iou: FloatArray


def match_image(
    record: ImageRecord,
    *,
    num_classes: int,
    iou_thresholds: FloatArray,
    area_bounds: FloatArray,
    max_detections: int,
    class_agnostic: bool,
    limits_all_classes: bool = False,
) -> DetectionMatches:
    """Match one image.

    num_classes      K; with class_agnostic every label is read as 0 and K must be 1
    iou_thresholds   (T,) ascending
    area_bounds      (A, 2) px^2, both bounds inclusive
    max_detections   kept per class (COCOeval: per image AND category), the best by score; with limits_all_classes of
                     the image
    """
    gt_order = np.argsort(record.gt_labels, kind="stable")
    gt_areas, crowd = record.gt_areas[gt_order], record.gt_crowd[gt_order]
    gt_labels = np.zeros_like(gt_order) if class_agnostic else record.gt_labels[gt_order]
    ignored = crowd | ~_in_range(gt_areas, area_bounds)

    order, labels, ranks = _listed(
        record, max_detections, class_agnostic=class_agnostic, limits_all_classes=limits_all_classes
    )
    boxes = record.boxes[order]
    in_area = _in_range(boxes[:, 2] * boxes[:, 3], area_bounds)

    pairs = _overlapping_pairs(boxes, labels, record.gt_boxes[gt_order], gt_labels, crowd, iou_thresholds[0])
    candidates, pair_column = np.unique(pairs.detection, return_inverse=True)
    column = np.full(len(order), -1, np.int32)
    column[candidates] = np.arange(len(candidates))
    matched = _match_greedily(pairs, pair_column, len(candidates), crowd, ignored, iou_thresholds)
    counted = [np.bincount(gt_labels[~row], minlength=num_classes) for row in ignored]
    return DetectionMatches(
        labels=labels.astype(np.int32),
        scores=record.scores[order],
        ranks=ranks.astype(np.int32),
        in_area=in_area,
        column=column,
        states=_states(matched, pairs.object, ignored, in_area[:, candidates]),
        ious=np.where(matched[:, 0] >= 0, np.append(pairs.iou, 0.0)[matched[:, 0]], 0.0),
        num_objects=np.stack(counted, axis=1),
    )


def _listed(
    record: ImageRecord, max_detections: int, *, class_agnostic: bool, limits_all_classes: bool
) -> tuple[IntArray, IntArray, IntArray]:
    """Index, label and rank of the detections that the limit keeps, by class and descending score, all (D,)."""
    # Class-agnostic ties are ordered by class and then by file, as COCOeval does when it joins the classes.
    keys = (record.labels, -record.scores) if class_agnostic else (-record.scores, record.labels)
    order = np.lexsort(keys)
    labels = np.zeros_like(order) if class_agnostic else record.labels[order]
    if limits_all_classes:
        ranks = np.argsort(np.argsort(-record.scores[order], kind="stable"), kind="stable")
    else:
        ranks = np.arange(len(order)) - np.searchsorted(labels, labels)
    kept = ranks < max_detections
    return order[kept], labels[kept], ranks[kept]


def _states(matched: IntArray, objects: IntArray, ignored: BoolArray, in_area: BoolArray) -> NDArray[np.int8]:
    """Matched pairs (A, T, C), objects (P,), ignored (A, G), detections' in_area (A, C) -> (A, T, C)"""
    states = np.where(in_area[:, None], FALSE_POSITIVE, IGNORED).repeat(matched.shape[1], axis=1).astype(np.int8)
    area, threshold, candidate = np.nonzero(matched >= 0)
    hit_ignored = ignored[area, objects[matched[area, threshold, candidate]]]
    states[area, threshold, candidate] = np.where(hit_ignored, IGNORED, TRUE_POSITIVE)
    return states


def _in_range(areas: FloatArray, bounds: FloatArray) -> BoolArray:
    """(N,), (A, 2) -> (A, N)"""
    return (areas >= bounds[:, :1]) & (areas <= bounds[:, 1:])


def _overlapping_pairs(
    boxes: FloatArray,
    labels: IntArray,
    gt_boxes: FloatArray,
    gt_labels: IntArray,
    crowd: BoolArray,
    lowest_iou: float,
) -> _Pairs:
    """Pairs of one class with IoU >= lowest_iou, for a crowd: with that share of the detection inside it."""
    left, top = boxes[:, :1], boxes[:, 1:2]
    right, bottom = left + boxes[:, 2:3], top + boxes[:, 3:]
    gt_left, gt_top = gt_boxes[:, 0], gt_boxes[:, 1]
    gt_right, gt_bottom = gt_left + gt_boxes[:, 2], gt_top + gt_boxes[:, 3]
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    step = max(1, _OVERLAPS_PER_BLOCK // max(1, len(gt_boxes)))
    for begin in range(0, len(boxes), step):
        block = slice(begin, begin + step)
        width = np.minimum(right[block], gt_right) - np.maximum(left[block], gt_left)
        height = np.minimum(bottom[block], gt_bottom) - np.maximum(top[block], gt_top)
        row, column = np.nonzero((width > 0) & (height > 0) & (labels[block, None] == gt_labels))
        found.append((row + begin, column, width[row, column] * height[row, column]))
    detection, gt, intersection = (np.concatenate(parts) for parts in zip(*found, strict=True))

    area, gt_area = boxes[:, 2] * boxes[:, 3], gt_boxes[:, 2] * gt_boxes[:, 3]
    union = np.where(crowd[gt], area[detection], area[detection] + gt_area[gt] - intersection)
    iou = intersection / union
    order = np.lexsort((gt, iou, detection))
    order = order[iou[order] >= lowest_iou]
    return _Pairs(detection[order], gt[order], iou[order])


def _match_greedily(
    pairs: _Pairs,
    column: IntArray,
    num_candidates: int,
    crowd: BoolArray,
    ignored: BoolArray,
    iou_thresholds: FloatArray,
) -> IntArray:
    """Index of the matched pair, -1 for none, (A, T, C); column (P,) is the candidate of each pair.

    The loop over detections is run in rounds: a detection may choose once it is, for all the objects it overlaps,
    the first of those still waiting, so its choice cannot depend on the order within a round.
    """
    num_areas, num_objects = ignored.shape
    matched = np.full((num_areas, len(iou_thresholds), num_candidates), -1)
    free = np.ones((num_areas, len(iou_thresholds), num_objects), np.bool_)
    reachable = np.append(iou_thresholds, np.inf)  # the threshold by index; none left: out of reach
    waiting = np.arange(len(column))
    first = np.empty(num_objects, np.int64)
    while len(waiting):
        objects, columns = pairs.object[waiting], column[waiting]
        first[objects[::-1]] = columns[::-1]  # the last assignment stays: the lowest column
        blocked = np.zeros(num_candidates, np.bool_)
        blocked[columns[(first[objects] != columns) & ~crowd[objects]]] = True
        later = blocked[columns]

        now = waiting[~later]
        objects, columns = pairs.object[now], columns[~later]
        position = np.arange(len(now))
        possible = free[:, :, objects] & (pairs.iou[now] >= iou_thresholds[:, None])
        preference = position + len(now) * ~ignored[:, None, objects]  # real ones first, then IoU, then the last
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        best = np.maximum.reduceat(np.where(possible, preference, -1), starts, axis=2)
        area, threshold, slot = np.nonzero(best >= 0)
        chosen = now[best[area, threshold, slot] % len(now)]
        matched[area, threshold, columns[starts[slot]]] = chosen
        free[area, threshold, pairs.object[chosen]] = crowd[pairs.object[chosen]]

        waiting = waiting[later]
        still_free = free.any(axis=0)
        lowest = np.where(still_free.any(axis=0), still_free.argmax(axis=0), len(iou_thresholds))
        waiting = waiting[pairs.iou[waiting] >= reachable[lowest[pairs.object[waiting]]]]
    return matched


def join_matches(parts: list[DetectionMatches]) -> DetectionMatches:
    """DetectionMatches of many images as one, in the order given; at least one part."""
    offsets = np.cumsum([0] + [part.ious.shape[1] for part in parts[:-1]], dtype=np.int32)
    columns = [np.where(p.column < 0, p.column, p.column + offset) for p, offset in zip(parts, offsets, strict=True)]
    return DetectionMatches(
        labels=np.concatenate([part.labels for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
        in_area=np.concatenate([part.in_area for part in parts], axis=1),
        column=np.concatenate(columns),
        states=np.concatenate([part.states for part in parts], axis=2),
        ious=np.concatenate([part.ious for part in parts], axis=1),
        num_objects=np.sum([part.num_objects for part in parts], axis=0),
    )
