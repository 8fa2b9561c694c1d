"""Reliability diagram and calibration error, by hand and under the rules of the protocol."""

import numpy as np
import pytest

from engine.metrics.average_precision import AITOD, ImageRecord, detection_metrics, match_records
from engine.metrics.reliability import OperatingPoint, joined, matched_reliability, operating_point, reliability


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


def test_precision_and_recall_from_a_score_on() -> None:
    """Two objects of class 0; above 0.5: a hit, and a box of another class. The second object is hit below."""
    record = ImageRecord(
        image_id=1,
        gt_boxes=[[0, 0, 10, 10], [30, 30, 10, 10], [50, 50, 40, 40]],
        gt_labels=[0, 0, 0],
        gt_areas=[100, 100, 1600],
        gt_crowd=[False, False, True],
        boxes=[[0, 0, 10, 9], [0, 0, 10, 10], [30, 30, 10, 10], [55, 55, 8, 8]],
        scores=[0.9, 0.5, 0.3, 0.8],
        labels=[0, 1, 0, 0],
    )
    matches = match_records([record], 2, AITOD)
    assert matches is not None
    assert operating_point(matches, 0.5) == OperatingPoint(precision=1 / 2, recall=1 / 2)
    assert operating_point(matches, 0.2) == OperatingPoint(precision=2 / 3, recall=1.0)
    assert np.isnan(operating_point(matches, 0.95).precision)
    assert matched_reliability(matches, 0, least_score=0.5).detections.sum() == 2


def test_joined_diagrams_are_those_of_all_detections() -> None:
    rng = np.random.default_rng(1)
    scores, correct = rng.random(90) / 2, rng.random(90) < 0.3
    whole = reliability(scores, correct)
    parts = joined([reliability(scores[:20], correct[:20]), reliability(scores[20:], correct[20:])])
    assert parts.error == pytest.approx(whole.error)
    np.testing.assert_array_equal(parts.detections, whole.detections)
    np.testing.assert_allclose(parts.precision, whole.precision)
    assert np.isnan(parts.mean_score[-1])
