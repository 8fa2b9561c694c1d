"""The fit of queries per object on hand-made counts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from d3q import query_count
from engine.evaluation.calibration import (
    STEPS_PER_UNIT,
    Calibration,
    UnreachableCoverageError,
    calibrate,
    calibrate_floor,
)


def queries(estimates: list[float], floor: int, ceiling: int) -> Callable[[float], np.ndarray]:
    counts = torch.tensor(estimates)
    return lambda t: query_count(counts, queries_per_object=t, min_queries=floor, max_queries=ceiling).numpy()


def fit(
    estimates: list[float], objects: list[int], coverage: float, *, floor: int = 1, ceiling: int = 1000
) -> Calibration:
    return calibrate(
        queries(estimates, floor, ceiling),
        np.array(objects),
        coverage=coverage,
        min_queries=floor,
        max_queries=ceiling,
    )


@pytest.mark.parametrize(
    ("objects", "expected"),
    [(10, 1.0), (15, 1.45), (16, 1.55), (20, 1.95), (21, 2.05), (30, 2.95)],  # ceil(10 t) >= objects
)
def test_one_image_gets_the_smallest_step_that_covers_it(objects: int, expected: float) -> None:
    found = fit([10.0], [objects], 1.0)
    assert found == Calibration(queries_per_object=expected, coverage=1.0, images_beyond_ceiling=0)
    below = (round(expected * STEPS_PER_UNIT) - 1) / STEPS_PER_UNIT
    assert expected == 1.0 or queries([10.0], 1, 1000)(below)[0] < objects


def test_the_wanted_share_decides_how_many_images_count() -> None:
    estimates, objects = [10.0, 10.0, 10.0, 10.0], [10, 20, 30, 40]
    expected = {0.25: 1.0, 0.26: 1.95, 0.5: 1.95, 0.75: 2.95, 0.76: 3.95, 1.0: 3.95}
    found = {coverage: fit(estimates, objects, coverage) for coverage in expected}
    assert {coverage: each.queries_per_object for coverage, each in found.items()} == expected
    assert found[0.26].coverage == 0.5


def test_estimates_are_rounded_as_the_budget_rounds_them() -> None:
    assert fit([0.6], [2], 1.0).queries_per_object == 1.05
    assert fit([2.5], [2], 1.0).queries_per_object == 1.0  # half to even
    with pytest.raises(UnreachableCoverageError, match="estimate of 0"):
        fit([0.5], [2], 1.0)


def test_more_coverage_never_takes_fewer_queries() -> None:
    rng = np.random.default_rng(0)
    objects = rng.integers(0, 300, 200)
    estimates = (objects * rng.uniform(0.3, 1.5, 200) + 1).tolist()
    fitted = [fit(estimates, objects.tolist(), share, floor=20) for share in (0.1, 0.5, 0.9, 0.95, 0.99, 1.0)]
    steps = [each.queries_per_object for each in fitted]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    for share, each in zip((0.1, 0.5, 0.9, 0.95, 0.99, 1.0), fitted, strict=True):
        counted = queries(estimates, 20, 1000)
        assert each.coverage == (counted(each.queries_per_object) >= objects).mean() >= share
        if each.queries_per_object > 1:
            below = (round(each.queries_per_object * STEPS_PER_UNIT) - 1) / STEPS_PER_UNIT
            assert (counted(below) >= objects).mean() < share


def test_the_floor_alone_may_do() -> None:
    assert fit([0.0, 3.0, 2.0], [5, 9, 0], 1.0, floor=9).queries_per_object == 1.0


def test_images_beyond_the_ceiling_may_be_uncovered_but_are_counted() -> None:
    found = fit([10.0] * 9 + [50.0], [10] * 9 + [51], 0.9, ceiling=50)
    assert (found.queries_per_object, found.coverage, found.images_beyond_ceiling) == (1.0, 0.9, 1)


def test_the_ceiling_makes_it_unreachable() -> None:
    with pytest.raises(UnreachableCoverageError) as caught:
        fit([10.0, 10.0, 10.0], [10, 60, 70], 0.9, ceiling=50)
    message = str(caught.value)
    assert "coverage 0.9 cannot be reached; the best is 0.3333 of 3 images" in message
    assert "Images with more objects than the ceiling of 50 queries: 2. Choose a coverage" in message
    assert "a coverage of at most 0.3333, or a detector with a longer query table" in message
    assert "min_queries" not in message


def test_estimates_of_zero_make_it_unreachable() -> None:
    estimates, objects = [0.0, 0.0, 0.0, 4.0, 4.0], [3, 12, 8, 4, 60]
    with pytest.raises(UnreachableCoverageError) as caught:
        fit(estimates, objects, 0.8, floor=5, ceiling=50)
    message = str(caught.value)
    assert "the best is 0.4 of 5 images" in message
    assert "Images with more objects than min_queries 5, but an estimate of 0: 2. " in message
    assert "Images with more objects than the ceiling of 50 queries: 1. " in message
    assert "Choose min_queries 12, or a coverage of at most 0.4" in message
    assert fit(estimates, objects, 0.8, floor=12, ceiling=50).coverage == 0.8
    assert fit(estimates, objects, 0.4, floor=5, ceiling=50).coverage == 0.4


def test_the_coverage_that_is_called_reachable_is() -> None:
    estimates, objects = [0.0] + [4.0] * 2, [9, 4, 4]
    with pytest.raises(UnreachableCoverageError, match=r"at most 0\.6666"):
        fit(estimates, objects, 0.99)
    assert fit(estimates, objects, 0.6666).coverage == pytest.approx(2 / 3)


def test_without_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        fit([], [], 0.9)


def fit_both(estimates: list[float], objects: list[int], coverage: float) -> tuple[int, Calibration]:
    return calibrate_floor(
        lambda t, floor: queries(estimates, floor, 1000)(t), np.array(objects), coverage=coverage, max_queries=1000
    )


def test_a_fitted_floor_takes_the_fewest_queries() -> None:
    """One sparse image is underestimated: a floor of 9 for it is cheaper than nine queries per object for all."""
    estimates, objects = [1.0, 50.0, 100.0], [9, 50, 100]
    floor, found = fit_both(estimates, objects, 1.0)
    assert (floor, found.queries_per_object, found.coverage) == (9, 1.0, 1.0)
    floor, found = fit_both([10.0, 10.0], [10, 30], 1.0)
    assert (floor, found.queries_per_object) == (10, 2.95)  # a floor of 30 gives as many: the lower one is kept


def test_a_fitted_floor_is_never_worse_than_a_given_one() -> None:
    rng = np.random.default_rng(1)
    objects = rng.integers(0, 120, 60)
    estimates = (objects * rng.uniform(0.2, 1.4, 60) + rng.uniform(0, 5, 60) + 1).tolist()
    floor, found = fit_both(estimates, objects.tolist(), 0.95)
    assert found.coverage >= 0.95
    least = queries(estimates, floor, 1000)(found.queries_per_object).mean()
    for given in (1, 5, 20, 60):
        other = fit(estimates, objects.tolist(), 0.95, floor=given)
        assert least <= queries(estimates, given, 1000)(other.queries_per_object).mean()


def test_an_unreachable_coverage_with_a_fitted_floor() -> None:
    with pytest.raises(UnreachableCoverageError, match="ceiling of 1000"):
        fit_both([10.0], [2000], 1.0)
