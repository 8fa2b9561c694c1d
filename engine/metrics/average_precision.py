"""Detection metrics under the AI-TOD and COCO protocols: AP, AR and optimal LRP, exactly COCOeval's numbers.

Sources: pycocotools.cocoeval (AP, AR); Oksuz et al., Localization Recall Precision, ECCV 2018 (LRP).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.metrics.ignored_regions import counted_record
from engine.metrics.matching import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    DetectionMatches,
    join_matches,
    match_image,
)
from engine.metrics.protocols import AITOD, COCO, EvaluationProtocol, get_protocol
from engine.metrics.records import FloatArray, ImageRecord, IntArray, records_from_coco
from engine.metrics.reliability import Reliability, matched_reliability

__all__ = [
    "AITOD",
    "COCO",
    "DetectionMetrics",
    "EvaluationProtocol",
    "ImageRecord",
    "OptimalLRP",
    "detection_metrics",
    "get_protocol",
    "records_from_coco",
]

AREA_SUFFIX = {"verytiny": "vt", "tiny": "t", "small": "s", "medium": "m", "large": "l"}


@dataclass(frozen=True, eq=False)
class OptimalLRP:
    """Lowest localisation-recall-precision error over score thresholds, and its parts there; all (K, A, M).

    -1 where the class has no object of that area; a class without true positives has 1, NaN, NaN, 1, NaN.
    """

    error: FloatArray
    localisation: FloatArray
    """Mean of 1 - IoU of the true positives."""
    false_positive: FloatArray
    """1 - precision."""
    false_negative: FloatArray
    """1 - recall."""
    score: FloatArray
    """The score threshold that reaches it."""


@dataclass(frozen=True, eq=False)
class DetectionMetrics:
    """Result of `detection_metrics`: T IoU thresholds, R recall thresholds, K classes, A areas, M detection limits.

    -1 where a class has no object of that area; means skip it.
    """

    protocol: EvaluationProtocol
    precision: FloatArray
    """(T, R, K, A, M) made monotone; 0 beyond the last recall reached."""
    recall: FloatArray
    """(T, K, A, M) over all detections."""
    scores: FloatArray
    """(T, R, K, A, M) score at which that recall is reached."""
    lrp: OptimalLRP
    reliability: Reliability
    """Of all detections, by the lowest IoU threshold"""

    def summary(self) -> dict[str, float]:
        """The protocol's published table, in its order; -1 where there is nothing to average.

        AP over all IoU thresholds and at single ones, AP per area, AR per limit and per area; for AI-TOD, LRP.
        mAP_25 of the published AI-TOD table is always -1: .25 is not among its thresholds.
        """
        limits, areas = self.protocol.max_detections, list(self.protocol.areas)
        table = {"mAP": _mean(self.precision[:, :, :, 0, -1])}
        for iou in self.protocol.reported_ious:
            table[f"mAP_{round(100 * iou)}"] = _mean(self.precision[self._at(iou), :, :, 0, -1])
        for index, area in enumerate(areas[1:], start=1):
            table[f"mAP_{AREA_SUFFIX.get(area, area)}"] = _mean(self.precision[:, :, :, index, -1])
        for index, limit in enumerate(limits):
            table[f"AR@{limit}"] = _mean(self.recall[:, :, 0, index])
        for index, area in enumerate(areas[1:], start=1):
            table[f"AR_{AREA_SUFFIX.get(area, area)}@{limits[-1]}"] = _mean(self.recall[:, :, index, -1])
        if self.protocol.reports_lrp:
            table["oLRP"] = _mean(self.lrp.error[:, 0, -1])
            table["oLRP_Localisation"] = _mean(self.lrp.localisation[:, 0, -1])
            table["oLRP_false_positive"] = _mean(self.lrp.false_positive[:, 0, -1])
            table["oLRP_false_negative"] = _mean(self.lrp.false_negative[:, 0, -1])
        return table

    def classwise_ap(self, iou_threshold: float | None = None) -> FloatArray:
        """(K,) AP per class over all areas, at the last limit; NaN for a class without objects.

        iou_threshold   one of the protocol's, such as 0.5; None: their mean. Raises ValueError for another.
        """
        chosen = np.ones(len(self.precision), np.bool_) if iou_threshold is None else self._at(iou_threshold)
        if not chosen.any():
            raise ValueError(f"IoU threshold {iou_threshold} was not evaluated; one of {self.protocol.iou_thresholds}")
        precision = self.precision[chosen, :, :, 0, -1]
        return np.where((precision > -1).all(axis=(0, 1)), precision.mean(axis=(0, 1)), np.nan)

    def _at(self, iou_threshold: float) -> np.ndarray:
        return np.isclose(self.protocol.iou_thresholds, iou_threshold)


def detection_metrics(
    records: Iterable[ImageRecord], num_classes: int, protocol: EvaluationProtocol, class_agnostic: bool = False
) -> DetectionMetrics:
    """Match every image once and accumulate in the order of the image ids, whatever the order of the records.

    records          may be a generator: what is kept of a record is small
    class_agnostic   labels are ignored (in COCOeval, useCats = 0); the result has one class

    Raises ValueError for an image id that occurs twice and for labels outside 0..num_classes-1.
    """
    matches = match_records(records, num_classes, protocol, class_agnostic)
    return _accumulate(matches, 1 if class_agnostic else num_classes, protocol)


def match_records(
    records: Iterable[ImageRecord], num_classes: int, protocol: EvaluationProtocol, class_agnostic: bool = False
) -> DetectionMatches | None:
    """The matches of all images, in the order of the image ids; None without images. As `detection_metrics`."""
    matched: dict[int, DetectionMatches] = {}
    for record in records:
        if record.image_id in matched:
            raise ValueError(
                f"image id {record.image_id} occurs twice, which would skew AP; keep one record per image "
                "(a distributed sampler repeats images to give every rank equally many)"
            )
        for field, labels in (("gt_labels", record.gt_labels), ("labels", record.labels)):
            if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
                raise ValueError(
                    f"image {record.image_id}: {field} range from {labels.min()} to {labels.max()}; with "
                    f"{num_classes} classes they must be indices from 0 to {num_classes - 1}, not category ids"
                )
        record = counted_record(record, num_classes, protocol)
        matched[record.image_id] = match_image(
            record,
            num_classes=1 if class_agnostic else num_classes,
            iou_thresholds=np.array(protocol.iou_thresholds),
            area_bounds=np.array(list(protocol.areas.values()), np.float64),
            max_detections=protocol.max_detections[-1],
            class_agnostic=class_agnostic,
            limits_all_classes=protocol.limits_all_classes,
        )
    return join_matches([matched[image_id] for image_id in sorted(matched)]) if matched else None


def _accumulate(matches: DetectionMatches | None, num_classes: int, protocol: EvaluationProtocol) -> DetectionMetrics:
    num_ious, recalls = len(protocol.iou_thresholds), np.array(protocol.recall_thresholds)
    shape = (num_classes, len(protocol.areas), len(protocol.max_detections))
    precision, scores = np.full((2, num_ious, len(recalls), *shape), -1.0)
    recall = np.full((num_ious, *shape), -1.0)
    lrp = np.full((5, *shape), -1.0)
    diagram = matched_reliability(matches, 0)
    metrics = DetectionMetrics(protocol, precision, recall, scores, OptimalLRP(*lrp), diagram)
    if matches is None:
        return metrics
    for k in range(num_classes):
        of_class = np.flatnonzero(matches.labels == k)
        by_score = of_class[np.argsort(-matches.scores[of_class], kind="stable")]
        for m, limit in enumerate(protocol.max_detections):
            listed = by_score[matches.ranks[by_score] < limit]
            for a in np.flatnonzero(matches.num_objects[k]):
                curve = _trace(matches, listed, int(a))
                num_objects = int(matches.num_objects[k, a])
                recall[:, k, a, m] = (curve.states == TRUE_POSITIVE).sum(axis=1) / num_objects
                precision[:, :, k, a, m], scores[:, :, k, a, m] = _sample(curve, num_objects, recalls)
                lrp[:, k, a, m] = _optimal_lrp(curve, num_objects, protocol.iou_thresholds[0])
    return metrics


@dataclass(frozen=True, eq=False)
class _Curve:
    """N places of a score-sorted list.

    Totals are computed per threshold: all at once they would be the largest arrays of an evaluation.
    """

    scores: FloatArray
    """(N,)"""
    states: NDArray[np.int8]
    """(T, N)"""
    background: IntArray
    """(N,) false positives so far at places that were skipped."""
    ious: FloatArray
    """(N,) with the match at the first threshold; 0 without one."""

    def totals(self, threshold: int) -> tuple[FloatArray, FloatArray]:
        """True and false positives so far at the threshold of that index, both (N,)."""
        states = self.states[threshold]
        hits = np.cumsum(states == TRUE_POSITIVE, dtype=np.float64)
        return hits, np.cumsum(states == FALSE_POSITIVE, dtype=np.float64) + self.background


def _trace(matches: DetectionMatches, listed: IntArray, area: int) -> _Curve:
    """The detections `listed` at the first of them and at every candidate.

    The places between cannot matter: without a true positive no recall level is reached and no error falls.
    """
    kept = matches.column[listed] >= 0
    kept[:1] = True
    column = matches.column[listed[kept]]
    in_area = matches.in_area[area, listed]
    background = np.cumsum(in_area & ~kept)[kept]
    states = np.where(in_area[kept], FALSE_POSITIVE, IGNORED).astype(np.int8)
    ious = np.zeros(len(column))
    if matches.ious.shape[1]:
        states = np.where(column >= 0, matches.states[area][:, column], states)
        ious = np.where(column >= 0, matches.ious[area, column], 0.0)
    return _Curve(
        scores=matches.scores[listed[kept]],
        states=np.broadcast_to(states, (matches.states.shape[1], len(column))),
        background=background,
        ious=ious,
    )


def _sample(curve: _Curve, num_objects: int, recall_thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Precision and score at each recall threshold, both (T, R); 0 where it is not reached."""
    sampled = np.zeros((2, len(curve.states), len(recall_thresholds)))
    for t in range(len(curve.states)):
        hits, false = curve.totals(t)
        precisions = hits / (false + hits + np.spacing(1))
        precisions = np.maximum.accumulate(precisions[::-1])[::-1]
        places = np.searchsorted(hits / num_objects, recall_thresholds, side="left")
        reached = places < len(hits)
        sampled[0, t, reached] = precisions[places[reached]]
        sampled[1, t, reached] = curve.scores[places[reached]]
    return sampled[0], sampled[1]


def _optimal_lrp(curve: _Curve, num_objects: int, iou_threshold: float) -> tuple[float, float, float, float, float]:
    """Error, localisation, false positives, false negatives and score of the prefix with the lowest error."""
    hits, false = curve.totals(0)
    if not hits.any():
        return 1.0, np.nan, np.nan, 1.0, np.nan
    missed = num_objects - hits
    displaced = hits - np.cumsum(np.where(curve.states[0] == TRUE_POSITIVE, curve.ious, 0.0))  # sum of 1 - IoU
    error = (displaced / (1 - iou_threshold) + false + missed) / (hits + false + missed)
    best = int(np.argmin(error))
    with np.errstate(invalid="ignore"):  # where no prefix improves on the empty one, hits may be 0
        localisation, false_positive = displaced[best] / hits[best], false[best] / (hits[best] + false[best])
    return error[best], localisation, false_positive, missed[best] / num_objects, curve.scores[best]


def _mean(values: FloatArray) -> float:
    """Mean of the values that are neither -1 (nothing to find) nor NaN; -1 if there are none."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
