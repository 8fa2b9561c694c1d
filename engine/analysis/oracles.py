"""AP at an IoU of 0.5 if one part of the detector were perfect.

    counts    no object is missed because the budget was too small
    ranking   no object is missed because its proposals were ranked too low
    boxes     each detection of the right class that overlaps an object by 0.1 lies on it
    classes   each detection that lies on an object has its class

As in TIDE, an object that is no longer missed is no longer asked for; boxes and classes are matched again, and
detections beyond the first of an object stay false.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.analysis.causes import CAUSES, ObjectCauses
from engine.analysis.errors import BACKGROUND_IOU, FOREGROUND_IOU, IGNORED, ImageErrors, match_greedily
from engine.analysis.fixes import ErrorTable, Points, as_detected, precision_curves
from engine.metrics.records import BoolArray, FloatArray, ImageRecord

ORACLES = ("counts", "ranking", "boxes", "classes")
OF_QUERIES = {"counts": CAUSES.index("budget"), "ranking": CAUSES.index("ranking")}


@dataclass(frozen=True, eq=False)
class OracleColumns:
    """Columns beside those of an `ErrorTable`: N detections, M objects."""

    on_object: BoolArray
    """(N,) right with perfect boxes"""
    of_class: NDArray[np.int32]
    """(N,) class of its object with perfect classes, else -1"""
    never_queried: NDArray[np.int8]
    """(M,) cause of an object that no detection has at any score and that was never queried, else -1"""


def oracle_columns(record: ImageRecord, errors: ImageErrors, causes: ObjectCauses) -> OracleColumns:
    """The columns of one image."""
    labels, kept = record.gt_labels[errors.objects], errors.types != IGNORED
    sizes = len(errors.rows), len(errors.objects)
    same = record.labels[errors.rows][errors.pairs.row] == labels[errors.pairs.column]
    boxes, _ = match_greedily(errors.pairs.where(same & (errors.pairs.iou >= BACKGROUND_IOU)), *sizes)
    classes, _ = match_greedily(errors.pairs.where(errors.pairs.iou >= FOREGROUND_IOU), *sizes)
    never = np.isin(causes.causes, list(OF_QUERIES.values())) & (errors.taken_by < 0)
    return OracleColumns(
        on_object=(boxes >= 0)[kept],
        of_class=np.where(classes >= 0, np.append(labels, -1)[classes], -1)[kept].astype(np.int32),
        never_queried=np.where(never, causes.causes, -1).astype(np.int8),
    )


def join_oracles(parts: Sequence[OracleColumns]) -> OracleColumns:
    """The columns of many images, in the order given."""
    nothing = OracleColumns(np.zeros(0, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.int8))
    chosen = parts or [nothing]
    return OracleColumns(
        np.concatenate([part.on_object for part in chosen]),
        np.concatenate([part.of_class for part in chosen]),
        np.concatenate([part.never_queried for part in chosen]),
    )


def oracle_points(table: ErrorTable, columns: OracleColumns, oracle: str) -> Points:
    """What AP is computed from with one of ORACLES."""
    points = as_detected(table)
    if oracle == "boxes":
        return Points(points.labels, points.scores, columns.on_object, points.objects)
    if oracle == "classes":
        right = columns.of_class >= 0
        labels = np.where(right, columns.of_class, points.labels)
        return Points(labels, points.scores, right, points.objects)
    spared = columns.never_queried == OF_QUERIES[oracle]
    gone = np.bincount(table.object_labels[spared], minlength=table.num_classes)
    return Points(points.labels, points.scores, points.correct, points.objects - gone)


def oracle_curves(table: ErrorTable, columns: OracleColumns, recall_thresholds: FloatArray) -> dict[str, FloatArray]:
    """Mean precision over classes at each recall (R,), of the detections as they are ("as detected") and of ORACLES.

    The mean of a curve is its AP. NaN where there is nothing to measure.
    """
    counted = np.bincount(table.object_labels, minlength=table.num_classes) > 0
    sources = {"as detected": as_detected(table)}
    sources |= {oracle: oracle_points(table, columns, oracle) for oracle in ORACLES}
    curves = {}
    for name, points in sources.items():
        chosen = precision_curves(points, recall_thresholds)[counted]
        chosen = chosen[~np.isnan(chosen).any(axis=1)]
        curves[name] = chosen.mean(axis=0) if len(chosen) else np.full(len(recall_thresholds), np.nan)
    return curves
