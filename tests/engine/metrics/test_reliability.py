"""Reliability diagram and calibration error, by hand and under the rules of the protocol."""

import numpy as np
import pytest

from engine.metrics.average_precision import AITOD, ImageRecord, detection_metrics
from engine.metrics.reliability import reliability


def test_the_diagram_by_hand() -> None:
    found = reliability(np.array([0.0, 0.05, 0.61, 0.65, 1.0]), np.array([False, False, True, False, True]))
    assert found.detections.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]  # [9/15, 10/15) has two
    assert found.mean_score[[0, 9, 14]] == pytest.approx([0.025, 0.63, 1.0])
    assert found.precision[[0, 9, 14]] == pytest.approx([0.0, 0.5, 1.0])
    assert np.isnan([found.mean_score[1], found.precision[1]]).all()
    assert found.error == pytest.approx((2 * 0.025 + 2 * 0.13) / 5)


def test_no_detections_have_no_error() -> None:
    assert np.isnan(reliability(np.zeros(0), np.zeros(0, bool)).error)
    assert np.isnan(detection_metrics([], 1, AITOD).reliability.error)


def test_scores_drawn_from_their_own_probability_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(200_000)
    assert reliability(scores, rng.random(len(scores)) < scores).error < 0.005
    assert reliability(scores, rng.random(len(scores)) < scores**2).error == pytest.approx(1 / 6, abs=0.01)


def test_a_detection_in_a_crowd_region_is_neither_right_nor_wrong() -> None:
    record = ImageRecord(
        image_id=1,
        gt_boxes=[[0, 0, 10, 10], [50, 50, 40, 40]],
        gt_labels=[0, 0],
        gt_areas=[100, 1600],
        gt_crowd=[False, True],
        boxes=[[0, 0, 10, 9], [55, 55, 8, 8], [20, 20, 8, 8], [0, 0, 10, 10]],
        scores=[0.95, 0.85, 0.75, 0.65],
        labels=[0, 0, 0, 1],
    )
    found = detection_metrics([record], 2, AITOD).reliability
    assert np.flatnonzero(found.detections).tolist() == [9, 11, 14]
    assert found.precision[[9, 11, 14]].tolist() == [0.0, 0.0, 1.0]  # another class, nothing there, a hit
