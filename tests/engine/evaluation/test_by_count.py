"""Results per count bin: each bin is a data set of its own."""

import numpy as np
import pytest
import torch

from engine.evaluation.by_count import BinResult, evaluate_by_count, format_settings
from engine.evaluation.evaluate import gather_predictions
from engine.metrics.average_precision import AITOD
from tests.engine.evaluation.test_evaluate import ALONE, Truth, prediction, truth


def boxes(count: int) -> list[list[float]]:
    return [[20.0 * i, 10.0, 8.0, 8.0] for i in range(count)]


def corners(count: int) -> list[list[float]]:
    return [[x, y, x + w, y + h] for x, y, w, h in boxes(count)]


TRUTHS: list[Truth] = [truth(3, boxes(12)), truth(1, []), truth(2, boxes(4))]


@pytest.fixture
def results() -> dict[str, BinResult]:
    """Every object of image 2 is found and none of image 3; ten queries each."""
    found = [prediction(1, [[0, 0, 5, 5]]), prediction(2, corners(4)), prediction(3, [])]
    return evaluate_by_count(gather_predictions([(found, 1.0)], processes=ALONE), TRUTHS, num_classes=1, protocol=AITOD)


def test_each_bin_is_evaluated_alone(results: dict[str, BinResult]) -> None:
    assert [results[name].images for name in ("all", "0", "1-10", "11-50", "51-100")] == [3, 1, 1, 1, 0]
    assert results["1-10"].average_precision == pytest.approx(1.0)  # the false alarm is in an image of another bin
    assert results["11-50"].average_recall == 0.0
    assert 0 < results["all"].average_precision < results["all"].average_recall == pytest.approx(0.25)
    assert (results["all"].coverage, results["11-50"].coverage) == (pytest.approx(2 / 3), 0.0)
    assert results["0"].mean_queries == 10
    assert np.isnan([results["0"].average_precision, results["51-100"].coverage]).all()


def test_settings_stand_under_one_another(results: dict[str, BinResult]) -> None:
    lines = format_settings({"before": results, "after": results}).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["all", "3", "before"], ["after", *lines[1].split()[3:5]]]
    assert lines[5].split() == ["1-10", "1", "before", "100.0", "100.0", "10.0", "100.0"]
    assert lines[-1].split() == [">500", "0", *"-----"]
    assert max(map(len, lines)) <= 100


def test_an_image_that_was_not_predicted_is_refused() -> None:
    found = gather_predictions([([prediction(1, [])], 1.0)], processes=ALONE)
    with pytest.raises(ValueError, match="not predicted"):
        evaluate_by_count(found, TRUTHS, num_classes=1, protocol=AITOD)


def test_counts_that_are_not_finite_are_no_counts() -> None:
    found = gather_predictions([([prediction(1, [], count=float(torch.tensor(torch.nan)))], 1.0)], processes=ALONE)
    assert found.predicted_counts is None
