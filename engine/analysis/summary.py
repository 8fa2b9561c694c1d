"""The figures of an analysis as JSON types: shares in [0, 1], None where there is nothing to measure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.analysis.atlas import Atlas
from engine.analysis.causes import CAUSES, HIT
from engine.analysis.curves import ScoreCurves, mean_of_classes, score_curves
from engine.analysis.errors import FALSE_POSITIVES, MISSES
from engine.analysis.fixes import delta_precisions
from engine.analysis.oracles import ORACLES, oracle_curves
from engine.metrics.average_precision import DetectionMetrics
from engine.metrics.counting import COUNT_BINS
from engine.metrics.records import BoolArray
from engine.metrics.reliability import Reliability

FORMAT = 1
QUERY_CAUSES = tuple(name for name in CAUSES if name != "nothing")
FILE_CAUSES = ("nothing", "score", "class", "box")


def analysis_record(atlas: Atlas, metrics: DetectionMetrics, class_names: Sequence[str]) -> dict[str, Any]:
    """All that follows from the detections and the objects; `class_names` are of the K classes.

    errors      dAP and counts of the error types, and of misses
    causes      objects and causes of misses, of all, by class, by size and by objects of the image
    offsets     of the cause "box": px
    oracles     AP at an IoU of 0.5 with one part perfect, and its precision at each recall
    curves      precision over recall (IoU 0.5), and over the score threshold precision, recall and F1
    confusion   object's class by detection's class, at the score threshold; the last row and column are none
    """
    recalls = np.array(metrics.protocol.recall_thresholds)
    curves = score_curves(atlas.errors)
    return {
        "format": FORMAT,
        "score_threshold": atlas.score_threshold,
        "has_queries": atlas.has_queries,
        "protocol": metrics.protocol.name,
        "max_detections": metrics.protocol.max_detections[-1],
        "images": len(atlas.image_ids),
        "objects": int(atlas.objects.sum()),
        "missed": int(atlas.missed.sum()),
        "false_alarms": int(atlas.false_alarms.sum()),
        "detection": {name: _measured(value) for name, value in metrics.summary().items()},
        "classes": _classes(atlas, metrics, curves, class_names),
        "errors": _errors(atlas, recalls),
        "causes": _causes(atlas, metrics, class_names),
        "offsets": _offsets(atlas),
        "oracles": _oracles(atlas, recalls),
        "curves": _curves(metrics, curves),
        "confusion": atlas.confusion.tolist(),
        "calibration": _calibration(metrics.reliability),
    }


def _classes(
    atlas: Atlas, metrics: DetectionMetrics, curves: ScoreCurves, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    objects = np.bincount(atlas.errors.object_labels, minlength=atlas.errors.num_classes)
    place = int(np.searchsorted(curves.thresholds, atlas.score_threshold - 1e-9))
    columns = {
        "AP": metrics.classwise_ap(),
        "AP50": metrics.classwise_ap(0.5),
        "precision": curves.precision[:, place],
        "recall": curves.recall[:, place],
        "F1": curves.f1[:, place],
    }
    return [
        {"name": name, "objects": int(objects[k])} | {key: _or_none(values[k]) for key, values in columns.items()}
        for k, name in enumerate(class_names)
    ]


def _errors(atlas: Atlas, recalls: np.ndarray) -> dict[str, Any]:
    table = atlas.errors
    gains = delta_precisions(table, recalls)
    return {
        "AP": _or_none(gains.pop("AP")),
        "dAP": {name: _or_none(gain) for name, gain in gains.items()},
        "false_positives": {name: int((table.types == code).sum()) for name, code in FALSE_POSITIVES.items()},
        "misses": {name: int((table.misses == code).sum()) for name, code in MISSES.items()},
    }


def _causes(atlas: Atlas, metrics: DetectionMetrics, class_names: Sequence[str]) -> dict[str, Any]:
    labels, areas, counts = atlas.errors.object_labels, atlas.areas, atlas.objects_in_image
    names = QUERY_CAUSES if atlas.has_queries else FILE_CAUSES

    def counted(chosen: BoolArray) -> dict[str, int]:
        found = {name: int((atlas.causes[chosen] == CAUSES.index(name)).sum()) for name in names}
        return {"objects": int(chosen.sum()), "found": int((atlas.causes[chosen] == HIT).sum())} | found

    bounds = list(metrics.protocol.areas.items())[1:]
    sizes, rest = {}, np.ones(len(areas), np.bool_)
    for name, (_, high) in bounds:
        sizes[name] = rest & (areas <= high)
        rest &= ~sizes[name]
    bins = {name: (counts >= low) & (counts <= high) for name, (low, high) in COUNT_BINS.items() if high > 0}
    return {
        "all": counted(np.ones(len(labels), np.bool_)),
        "by_class": {name: counted(labels == k) for k, name in enumerate(class_names)},
        "by_size": {name: counted(chosen) for name, chosen in sizes.items()},
        "by_count": {name: counted(chosen) for name, chosen in bins.items()},
    }


def _offsets(atlas: Atlas) -> dict[str, Any]:
    """Of misses with the cause "box": error of centre and size, and how many are off by so many whole pixels."""
    known = atlas.offsets[~np.isnan(atlas.offsets).any(axis=1)]
    centre, size = np.hypot(known[:, 0], known[:, 1]), known[:, 2:].mean(axis=1)
    whole = np.minimum(np.rint(centre), OFFSET_BINS - 1).astype(np.int64)
    return {
        "objects": len(known),
        "centre_median": _or_none(np.median(centre) if len(known) else math.nan),
        "size_median": _or_none(np.median(size) if len(known) else math.nan),
        "larger": _or_none((size > 0).mean() if len(known) else math.nan),
        "by_pixels": np.bincount(whole, minlength=OFFSET_BINS).tolist(),
    }


OFFSET_BINS = 11
"""0 to 9 px, and more"""


def _oracles(atlas: Atlas, recalls: np.ndarray) -> dict[str, Any]:
    curves = oracle_curves(atlas.errors, atlas.oracles, recalls)
    kept = ["as detected", *(name for name in ORACLES if atlas.has_queries or name in ("boxes", "classes"))]
    return {
        name: {"AP50": _or_none(curves[name].mean()), "precision": [_or_none(x) for x in curves[name]]} for name in kept
    }


def _curves(metrics: DetectionMetrics, curves: ScoreCurves) -> dict[str, Any]:
    at_half = int(np.argmin(np.abs(np.array(metrics.protocol.iou_thresholds) - 0.5)))
    precision = metrics.precision[at_half, :, :, 0, -1].T  # (K, R)
    precision = np.where(precision < 0, np.nan, precision)
    threshold, f1 = curves.best()

    def rows(values: np.ndarray) -> list[list[float | None]]:
        return [[_or_none(x) for x in row] for row in values]

    return {
        "recall": list(metrics.protocol.recall_thresholds),
        "precision_at_recall": rows(precision),
        "mean_precision_at_recall": [_or_none(x) for x in mean_of_classes(precision)],
        "thresholds": curves.thresholds.tolist(),
        "precision": [_or_none(x) for x in mean_of_classes(curves.precision)],
        "recall_at_threshold": [_or_none(x) for x in mean_of_classes(curves.recall)],
        "F1": rows(curves.f1),
        "mean_F1": [_or_none(x) for x in curves.mean_f1()],
        "best_threshold": _or_none(threshold),
        "best_F1": _or_none(f1),
    }


def _calibration(diagram: Reliability) -> dict[str, Any]:
    return {
        "error": _or_none(diagram.error),
        "detections": diagram.detections.tolist(),
        "mean_score": [_or_none(x) for x in diagram.mean_score],
        "precision": [_or_none(x) for x in diagram.precision],
    }


def _measured(value: float) -> float | None:
    return None if value == -1 else _or_none(value)


def _or_none(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
