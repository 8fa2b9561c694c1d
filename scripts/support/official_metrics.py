"""AP by the official COCO implementation, pycocotools, under a protocol's limits, areas and thresholds."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.metrics.average_precision import AREA_SUFFIX, EvaluationProtocol

LIMIT = 1e-9
"""Largest difference of two implementations that agree"""


def official_summary(
    gt: dict[str, Any], detections: Sequence[dict[str, Any]], protocol: EvaluationProtocol
) -> dict[str, float]:
    """mAP, mAP_50, mAP_75 and mAP of each area, of all classes; -1 where there is nothing to measure.

    Annotation ids are renumbered from 1: pycocotools takes a match with id 0 for a miss.
    """
    content = copy.deepcopy({name: gt[name] for name in ("images", "annotations", "categories")})
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        # Only these keys: a "caption" or "segmentation" would make pycocotools read another kind of results.
        plain = [{key: entry[key] for key in ("image_id", "category_id", "bbox", "score")} for entry in detections]
        found = truth.loadRes(plain) if plain else COCO()
        evaluator = COCOeval(truth, found, "bbox")
        parameters = evaluator.params
        parameters.imgIds = sorted(image["id"] for image in content["images"])
        parameters.catIds = sorted(category["id"] for category in content["categories"])
        parameters.iouThrs = np.array(protocol.iou_thresholds)
        parameters.recThrs = np.array(protocol.recall_thresholds)
        parameters.maxDets = list(protocol.max_detections)
        parameters.areaRng = [list(bounds) for bounds in protocol.areas.values()]
        parameters.areaRngLbl = list(protocol.areas)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][..., -1]  # (thresholds, recalls, classes, areas)
    values = {"mAP": _mean(precision[..., 0])}
    for threshold in (0.5, 0.75):
        place = np.flatnonzero(np.isclose(protocol.iou_thresholds, threshold))
        if len(place):
            values[f"mAP_{round(100 * threshold)}"] = _mean(precision[place[0], :, :, 0])
    sizes = [AREA_SUFFIX.get(name, name) for name in protocol.areas]
    return values | {f"mAP_{name}": _mean(precision[..., i]) for i, name in enumerate(sizes) if i > 0}


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
