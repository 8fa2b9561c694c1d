"""What an evaluation was of: two results may be compared where these records are equal."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datasets.structures import GroundTruth
from engine.metrics.protocols import EvaluationProtocol
from engine.metrics.records import ImageRecord

AS_GIVEN = "as given"
"""Scores of a results file"""


def fingerprint(
    protocol: EvaluationProtocol, class_names: Sequence[str], annotations: str, *, scores: str
) -> dict[str, Any]:
    """The fingerprint as JSON types.

    annotations   from `annotations_digest`
    scores        published, corrected or AS_GIVEN
    """
    counted = "image" if protocol.limits_all_classes else "image and class"
    share = protocol.ignored_share
    return {
        "protocol": protocol.name,
        "classes": list(class_names),
        "ignored": "crowd" if share is None else f"dropped from a share of {share:g} inside on",
        "limits": {"per": counted, "detections": list(protocol.max_detections)},
        "areas": {name: [float(bound) for bound in bounds] for name, bounds in protocol.areas.items()},
        "iou_thresholds": [round(each, 6) for each in protocol.iou_thresholds],
        "recall_thresholds": [round(each, 6) for each in protocol.recall_thresholds],
        "scores": scores,
        "annotations": annotations,
    }


def annotations_digest(objects: Iterable[GroundTruth | ImageRecord]) -> str:
    """SHA-256 of all images and objects: ids, boxes, classes, areas, crowds, in whatever order a file has them."""
    digests = {each.image_id: _image_digest(each) for each in objects}
    whole = hashlib.sha256()
    for image_id in sorted(digests):
        whole.update(b"%d:" % image_id + digests[image_id])
    return whole.hexdigest()


def _image_digest(each: GroundTruth | ImageRecord) -> bytes:
    if isinstance(each, ImageRecord):
        boxes, labels, areas, crowd = each.gt_boxes, each.gt_labels, each.gt_areas, each.gt_crowd
    else:
        boxes, labels, areas, crowd = each.boxes, each.labels, each.areas, each.crowd
    rows = np.column_stack([boxes.reshape(-1, 4), labels, areas, crowd]).astype("<f8")
    return hashlib.sha256(rows[np.lexsort(rows.T[::-1])].tobytes()).digest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names and values of the fields that differ, a line each; scores "as given" may be of any kind."""
    lines = []
    for name in {**ours, **theirs}:
        one, other = ours.get(name), theirs.get(name)
        if one != other and not (name == "scores" and AS_GIVEN in (one, other)):
            lines.append(f"{name}: {_short(one)} and {_short(other)}")
    return lines


def _short(value: Any, most: int = 120) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
