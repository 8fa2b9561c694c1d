"""Count metrics: worked example, bins, empty input, errors."""

import math

import numpy as np
import pytest

from engine.metrics.counting import COUNT_BINS, count_metrics


def test_worked_example():
    metrics = count_metrics([12.0, 7.5, 600.0, 0.5], [300, 300, 500, 300], [10, 11, 501, 0])
    assert metrics["images"] == 4
    assert metrics["count_MAE"] == pytest.approx((2 + 3.5 + 99 + 0.5) / 4)
    assert metrics["count_bias"] == pytest.approx((2 - 3.5 + 99 + 0.5) / 4)
    assert metrics["coverage"] == 0.75
    assert metrics["mean_queries"] == 350
    assert (metrics["count_bias_1-10"], metrics["count_bias_11-50"]) == (2, -3.5)
    assert (metrics["coverage_1-10"], metrics["coverage_>500"]) == (1, 0)
    assert metrics["images_51-100"] == 0
    assert math.isnan(metrics["count_MAE_51-100"])


def test_as_many_queries_as_objects_cover_them():
    assert count_metrics([0], [500], [500])["coverage"] == 1


def test_bins_hold_every_image_once():
    objects = np.arange(0, 2000)
    metrics = count_metrics(objects, objects, objects)
    sizes = [metrics[f"images_{name}"] for name in COUNT_BINS]
    assert sizes == [1, 10, 40, 50, 400, 1499]


def test_no_images():
    metrics = count_metrics([], [], [])
    assert metrics["images"] == 0
    assert math.isnan(metrics["count_MAE"])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"num_queries has shape \(1,\); expected \(2,\)"):
        count_metrics([1, 2], [300], [1, 2])
    with pytest.raises(ValueError, match=r"predicted_counts\[1\] is not finite"):
        count_metrics([1, np.nan], [300, 300], [1, 2])
    with pytest.raises(ValueError, match=r"object_counts\[0\] is -1"):
        count_metrics([1], [300], [-1])
