"""VisDrone's rules on cases worked by hand: limits of an image, ignored regions, ignored objects."""

from dataclasses import replace

import numpy as np
import pytest

from engine.metrics.average_precision import detection_metrics, get_protocol
from engine.metrics.ignored_regions import counted_record, covered_share, ignored_regions
from engine.metrics.protocols import VISDRONE
from engine.metrics.records import ImageRecord

Box = tuple[float, float, float, float]


def record(
    objects: list[tuple[Box, int]],
    detections: list[tuple[Box, int, float]],
    crowds: list[tuple[Box, int]] | None = None,
) -> ImageRecord:
    truth = [*objects, *(crowds or [])]
    boxes = np.array([box for box, _ in truth], float).reshape(-1, 4)
    return ImageRecord(
        image_id=1,
        gt_boxes=boxes,
        gt_labels=np.array([label for _, label in truth], np.int64),
        gt_areas=boxes[:, 2] * boxes[:, 3],
        gt_crowd=np.arange(len(truth)) >= len(objects),
        boxes=np.array([box for box, _, _ in detections], float).reshape(-1, 4),
        scores=np.array([score for _, _, score in detections], float),
        labels=np.array([label for _, label, _ in detections], np.int64),
    )


def region(box: Box, classes: int = 2) -> list[tuple[Box, int]]:
    return [(box, label) for label in range(classes)]


def summary(image: ImageRecord) -> dict[str, float]:
    return detection_metrics([image], 2, VISDRONE).summary()


A, B = (0, 0, 10, 10), (50, 50, 10, 10)


def test_the_limits_count_all_classes_of_an_image() -> None:
    image = record([(A, 0), (B, 1)], [(A, 0, 0.9), (B, 1, 0.8)])
    found = summary(image)
    # The best of the image is of class 0; COCO's limit of one per class would find both.
    assert found["AR@1"] == pytest.approx(0.5)
    assert found["AR@10"] == pytest.approx(1)
    assert found["mAP"] == pytest.approx(1)
    assert detection_metrics([image], 2, get_protocol("coco")).summary()["AR@1"] == 1


def test_what_lies_in_an_ignored_region_by_half_is_dropped() -> None:
    half = (55, 50, 100, 100)  # covers half of B
    found = summary(record([(A, 0), (B, 0)], [(A, 0, 0.9)], region(half)))
    assert found["AR@500"] == 1  # B need not be found
    less = (56, 50, 100, 100)
    assert summary(record([(A, 0), (B, 0)], [(A, 0, 0.9)], region(less)))["AR@500"] == 0.5
    false = [(A, 0, 0.9), (B, 0, 0.95)]
    assert summary(record([(A, 0)], false, region(half)))["mAP"] == pytest.approx(1)  # a false alarm inside is none
    assert summary(record([(A, 0)], false, region(less)))["mAP"] == pytest.approx(0.5)


def test_two_regions_cover_together() -> None:
    regions = region((50, 50, 3, 10)) + region((52, 50, 3, 10))  # 5 of 10 columns, 1 of them twice
    assert summary(record([(A, 0), (B, 0)], [(A, 0, 0.9)], regions))["AR@500"] == 1
    boxes = np.array([[0, 0, 10, 10], [100, 0, 10, 10], [5, 5, 0, 4]], float)
    areas = np.array([[0, 0, 4, 10], [2, 0, 4, 5], [8, 8, 50, 50]], float)
    np.testing.assert_allclose(covered_share(boxes, areas), [0.4 + 0.1 + 0.04, 0, 0])


def test_dropped_detections_do_not_count_towards_the_limit() -> None:
    inside = [((200.0, 200.0, 5, 5), 1, 0.99)] * 3
    image = record([(A, 0)], [*inside, (A, 0, 0.5)], region((190, 190, 50, 50)))
    assert summary(image)["AR@1"] == 1


def test_an_ignored_object_is_a_crowd_of_its_class() -> None:
    image = record([(A, 0)], [(A, 0, 0.9), (B, 0, 0.95), (B, 1, 0.95)], [(B, 0)])
    assert ignored_regions(image, 2).tolist() == [False, False]
    assert detection_metrics([image], 2, VISDRONE).classwise_ap()[0] == pytest.approx(
        1
    )  # of class 0 it is no false alarm


def test_other_protocols_keep_what_lies_inside() -> None:
    image = record([(A, 0), (B, 0)], [(A, 0, 0.9)], region((55, 50, 100, 100)))
    assert detection_metrics([image], 2, get_protocol("coco")).summary()["AR@100"] == 0.5


def test_the_analysis_counts_as_the_metrics_do() -> None:
    inside = [((200.0 + i, 200.0, 5, 5), 1, 0.99) for i in range(3)]
    image = record([(A, 0), ((201, 200, 5, 5), 1)], [*inside, (A, 0, 0.5), (B, 0, 0.4)], region((190, 190, 50, 50)))
    kept = counted_record(image, 2, replace(VISDRONE, max_detections=(1,)))
    assert (kept.scores.tolist(), kept.gt_labels.tolist(), kept.gt_crowd.tolist()) == ([0.5], [0], [False])
    assert counted_record(image, 2, get_protocol("coco")) is image
