"""VisDrone's rules for whole images: what lies in ignored regions is dropped before the matching.

Source: VisDrone2018-DET-toolkit, dropObjectsInIgr. There regions are painted on a map of pixels; here areas are exact.
"""

from dataclasses import replace

import numpy as np

from engine.metrics.protocols import EvaluationProtocol
from engine.metrics.records import BoolArray, FloatArray, ImageRecord


def drop_ignored(record: ImageRecord, num_classes: int, share: float) -> ImageRecord:
    """The record without its ignored regions (crowds of every class), and without the objects and detections that have
    at least that share of their area inside their union."""
    regions = ignored_regions(record, num_classes)
    if not regions.any():
        return record
    areas = np.unique(record.gt_boxes[regions], axis=0)
    objects = ~regions & (covered_share(record.gt_boxes, areas) < share)
    detections = covered_share(record.boxes, areas) < share
    return replace(
        record,
        gt_boxes=record.gt_boxes[objects],
        gt_labels=record.gt_labels[objects],
        gt_areas=record.gt_areas[objects],
        gt_crowd=record.gt_crowd[objects],
        boxes=record.boxes[detections],
        scores=record.scores[detections],
        labels=record.labels[detections],
    )


def counted_record(record: ImageRecord, num_classes: int, protocol: EvaluationProtocol) -> ImageRecord:
    """What the protocol counts of a record, where that is not a matter of single classes: without ignored regions, and
    with the image's best detections of all classes, if it limits those."""
    if protocol.ignored_share is not None:
        record = drop_ignored(record, num_classes, protocol.ignored_share)
    limit = protocol.max_detections[-1]
    if not protocol.limits_all_classes or len(record.scores) <= limit:
        return record
    best = np.sort(np.argsort(-record.scores, kind="stable")[:limit])
    return replace(record, boxes=record.boxes[best], scores=record.scores[best], labels=record.labels[best])


def ignored_regions(record: ImageRecord, num_classes: int) -> BoolArray:
    """(G,) crowds whose box is that of a crowd of every class."""
    regions = np.zeros(len(record.gt_crowd), np.bool_)
    crowds = np.flatnonzero(record.gt_crowd)
    if len(crowds):
        boxes, place = np.unique(record.gt_boxes[crowds], axis=0, return_inverse=True)
        classes = np.unique(np.stack([place.reshape(-1), record.gt_labels[crowds]]), axis=1)[0]
        regions[crowds] = (np.bincount(classes, minlength=len(boxes)) == num_classes)[place.reshape(-1)]
    return regions


def covered_share(boxes: FloatArray, regions: FloatArray) -> FloatArray:
    """(N, 4), (R, 4) xywh -> (N,) share of each box that the union of the regions covers; 0 for an empty box."""
    corners = np.concatenate([regions[:, :2], regions[:, :2] + regions[:, 2:]], axis=1)
    xs, ys = np.unique(corners[:, [0, 2]]), np.unique(corners[:, [1, 3]])
    inside = (
        (corners[:, 0] <= xs[:-1, None])
        & (corners[:, 2] >= xs[1:, None])
        & ((corners[:, 1] <= ys[:-1, None]) & (corners[:, 3] >= ys[1:, None]))[:, None]
    ).any(axis=2)  # (rows, columns) of the grid of all corners
    widths, heights = (
        np.clip(np.minimum(boxes[:, [i + 2]] + boxes[:, [i]], cuts[1:]) - np.maximum(boxes[:, [i]], cuts[:-1]), 0, None)
        for i, cuts in ((0, xs), (1, ys))
    )
    covered = ((heights @ inside) * widths).sum(axis=1)
    area = boxes[:, 2] * boxes[:, 3]
    return np.divide(covered, area, out=np.zeros(len(boxes)), where=area > 0)
