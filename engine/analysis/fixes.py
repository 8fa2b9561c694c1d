"""How much AP each kind of error costs: AP with one kind fixed, less AP as it is (dAP of TIDE).

A fix makes one detection of each object right and drops the others of its kind; duplicates, background and both are
dropped; a missed object is no longer asked for. All false positives fixed: they score 0, and the right ones 1. All
false negatives fixed: only found objects are asked for. AP is that of the evaluator at an IoU of 0.5; a mean is over
the classes that have objects and, after the fix, anything left to measure.

Source: Bolya et al., TIDE, ECCV 2020.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.analysis.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    FOUND,
    IGNORED,
    LOCALISATION,
    MISSED,
    ImageErrors,
)
from engine.metrics.records import BoolArray, FloatArray, ImageRecord, IntArray

DROPPED = {"duplicate": DUPLICATE, "background": BACKGROUND, "both": BOTH}
MOVED = {"localisation": LOCALISATION, "classification": CLASSIFICATION}


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """The errors of all images, joined: N detections that count, M objects."""

    labels: NDArray[np.int32]
    """(N,)"""
    scores: FloatArray
    """(N,)"""
    types: NDArray[np.int8]
    """(N,) as in `ImageErrors`"""
    fixed_labels: NDArray[np.int32]
    """(N,) class of the object that a fix of this error would find, else -1"""
    object_labels: NDArray[np.int32]
    """(M,)"""
    misses: NDArray[np.int8]
    """(M,) as in `ImageErrors`"""
    num_classes: int


@dataclass(frozen=True, eq=False)
class Points:
    """What AP is computed from: N detections, and the objects that are asked for."""

    labels: NDArray[np.int32]
    scores: FloatArray
    correct: BoolArray
    objects: IntArray
    """(K,) per class"""


def error_columns(record: ImageRecord, errors: ImageErrors) -> dict[str, np.ndarray]:
    """The columns of an `ErrorTable` for one image; ignored detections are dropped."""
    kept = errors.types != IGNORED
    object_labels = record.gt_labels[errors.objects]
    rows, fixes = errors.rows[kept], errors.fixes[kept]
    fixed = np.where(fixes >= 0, object_labels[fixes], -1) if len(object_labels) else fixes
    values = (record.labels[rows], record.scores[rows], errors.types[kept], fixed, object_labels, errors.misses)
    return {name: value.astype(dtype) for (name, dtype), value in zip(_COLUMNS.items(), values, strict=True)}


def join_errors(parts: Sequence[Mapping[str, np.ndarray]], num_classes: int) -> ErrorTable:
    """One table of the columns of many images, in the order given."""
    nothing: list[Mapping[str, np.ndarray]] = [{name: np.zeros(0, dtype) for name, dtype in _COLUMNS.items()}]
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts or nothing]) for name in _COLUMNS}
    return ErrorTable(num_classes=num_classes, **joined)


_COLUMNS = {
    "labels": np.int32,
    "scores": np.float64,
    "types": np.int8,
    "fixed_labels": np.int32,
    "object_labels": np.int32,
    "misses": np.int8,
}


def as_detected(table: ErrorTable) -> Points:
    """The points of the evaluator's AP at an IoU of 0.5."""
    objects = np.bincount(table.object_labels, minlength=table.num_classes)
    return Points(table.labels, table.scores, table.types == CORRECT, objects)


def precision_curves(points: Points, recall_thresholds: FloatArray) -> FloatArray:
    """(K, R) precision of each class at each recall; NaN without objects and detections, 0 without objects alone."""
    curves = np.full((len(points.objects), len(recall_thresholds)), np.nan)
    for label, correct in enumerate(_by_class(points)):
        objects = int(points.objects[label])
        if objects or len(correct):
            curves[label] = precision_curve(correct, objects, recall_thresholds) if objects else 0.0
    return curves


def precision_curve(correct: BoolArray, objects: int, recall_thresholds: FloatArray) -> FloatArray:
    """Detections by falling score, (N,) whether each is right -> monotone precision at each recall, 0 beyond."""
    hits = np.cumsum(correct, dtype=np.float64)
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / objects, recall_thresholds, side="left")
    return np.append(precision, 0.0)[places]


def mean_precision(points: Points, counted: BoolArray, recall_thresholds: FloatArray) -> float:
    """Mean AP of the classes that count, (K,) bool, as far as there is anything left to measure; NaN without any."""
    precision = precision_curves(points, recall_thresholds).mean(axis=1)[counted]
    precision = precision[~np.isnan(precision)]
    return float(precision.mean()) if len(precision) else np.nan


def fix(table: ErrorTable, kind: str) -> Points:
    """The points after a fix of a type, of "missed", "false positives" or "false negatives"."""
    points = as_detected(table)
    if kind == "missed":
        gone = np.bincount(table.object_labels[table.misses == MISSED], minlength=table.num_classes)
        return Points(points.labels, points.scores, points.correct, points.objects - gone)
    if kind == "false negatives":
        found = np.bincount(table.object_labels[table.misses == FOUND], minlength=table.num_classes)
        return Points(points.labels, points.scores, points.correct, found)
    if kind == "false positives":
        return Points(points.labels, points.correct.astype(np.float64), points.correct, points.objects)
    wrong = table.types == {**DROPPED, **MOVED}[kind]
    fixed = wrong & (table.fixed_labels >= 0)
    labels = np.where(fixed, table.fixed_labels, points.labels)
    kept = ~wrong | fixed
    return Points(labels[kept], points.scores[kept], (points.correct | fixed)[kept], points.objects)


KINDS = (*MOVED, *DROPPED, "missed")
SPECIAL = ("false positives", "false negatives")


def delta_precisions(table: ErrorTable, recall_thresholds: FloatArray) -> dict[str, float]:
    """Under "AP" the AP, then dAP of KINDS (not below 0, as published) and SPECIAL, in [0, 1]; NaN without objects."""
    counted = np.bincount(table.object_labels, minlength=table.num_classes) > 0
    base = mean_precision(as_detected(table), counted, recall_thresholds)
    values = {"AP": base}
    for kind in (*KINDS, *SPECIAL):
        gain = mean_precision(fix(table, kind), counted, recall_thresholds) - base
        values[kind] = max(gain, 0.0) if kind in KINDS and gain == gain else gain
    return values


def _by_class(points: Points) -> list[BoolArray]:
    """Per class, (n,) whether each detection is right, by falling score."""
    by_score = np.argsort(-points.scores, kind="stable")
    labels = points.labels[by_score]
    order = by_score[np.argsort(labels, kind="stable")]
    bounds = np.searchsorted(points.labels[order], np.arange(len(points.objects) + 1))
    return [points.correct[order[bounds[k] : bounds[k + 1]]] for k in range(len(points.objects))]
