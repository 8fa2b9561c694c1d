"""Fingerprints: equal for the same evaluation, different in each field that matters."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.structures import GroundTruth
from engine.evaluation.fingerprint import annotations_digest, differences, fingerprint
from engine.metrics.protocols import AITOD, COCO, VISDRONE
from engine.metrics.records import ImageRecord


def truth(image_id: int = 1, **changes: np.ndarray) -> GroundTruth:
    columns = {
        "boxes": np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
        "labels": np.array([0, 1]),
        "areas": np.array([12.0, 56]),
        "crowd": np.array([False, True]),
    }
    return GroundTruth(image_id=image_id, **(columns | changes))


def test_the_digest_does_not_depend_on_the_order() -> None:
    one, two = truth(1), truth(2, labels=np.array([1, 1]))
    turned = GroundTruth(1, one.boxes[::-1], one.labels[::-1], one.areas[::-1], one.crowd[::-1])
    assert annotations_digest([one, two]) == annotations_digest([two, turned])


@pytest.mark.parametrize(
    "other",
    [
        truth(2),
        truth(boxes=np.array([[1.0, 2, 3, 4], [5, 6, 7, 8.5]])),
        truth(labels=np.array([1, 1])),
        truth(areas=np.array([12.0, 57])),
        truth(crowd=np.array([False, False])),
    ],
    ids=["image", "box", "class", "area", "crowd"],
)
def test_the_digest_depends_on_everything_evaluated(other: GroundTruth) -> None:
    assert annotations_digest([other]) != annotations_digest([truth()])
    assert annotations_digest([other, truth(7)]) != annotations_digest([other])


def test_records_of_a_results_file_have_the_digest_of_the_data_set() -> None:
    each, none = truth(), np.zeros(0)
    record = ImageRecord(1, each.boxes, each.labels, each.areas, each.crowd, none.reshape(0, 4), none, none.astype(int))
    assert annotations_digest([record]) == annotations_digest([each])


@pytest.mark.parametrize(
    ("field", "protocol", "classes", "annotations", "scores"),
    [
        ("protocol", replace(AITOD, name="mine"), ["a", "b"], "d", "published"),
        ("classes", AITOD, ["b", "a"], "d", "published"),
        ("ignored", replace(AITOD, ignored_share=0.5), ["a", "b"], "d", "published"),
        ("limits", replace(AITOD, max_detections=(100, 300, 500)), ["a", "b"], "d", "published"),
        ("limits", replace(AITOD, limits_all_classes=True), ["a", "b"], "d", "published"),
        ("areas", replace(AITOD, areas={"all": (0, 1e10)}), ["a", "b"], "d", "published"),
        ("iou_thresholds", replace(AITOD, iou_thresholds=(0.5,)), ["a", "b"], "d", "published"),
        ("recall_thresholds", replace(AITOD, recall_thresholds=(0.0, 1.0)), ["a", "b"], "d", "published"),
        ("scores", AITOD, ["a", "b"], "d", "corrected"),
        ("annotations", AITOD, ["a", "b"], "e", "published"),
    ],
)
def test_each_field_is_told(field: str, protocol: object, classes: list[str], annotations: str, scores: str) -> None:
    ours = fingerprint(AITOD, ["a", "b"], "d", scores="published")
    theirs = fingerprint(protocol, classes, annotations, scores=scores)  # type: ignore[arg-type]
    assert [line.partition(":")[0] for line in differences(ours, theirs)] == [field]
    assert differences(ours, ours) == []


def test_protocols_differ() -> None:
    marks = [fingerprint(each, [], "", scores="published") for each in (AITOD, COCO, VISDRONE)]
    assert all(differences(one, other) for one in marks for other in marks if one is not other)
