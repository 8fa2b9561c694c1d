"""Fit the queries per object to a required coverage, from predicted and true counts alone."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

STEPS_PER_UNIT = 20
"""Resolution of the fitted queries per object: steps of 0.05."""
LEAST_QUERIES_PER_OBJECT = 1.0
"""Lower bound, if min_queries alone gives the coverage: with less, every exact estimate would miss objects"""


class UnreachableCoverageError(ValueError):
    """No number of queries per object gives the required coverage."""


@dataclass(frozen=True)
class Calibration:
    """The smallest number of queries per object that gives the required coverage."""

    queries_per_object: float
    """A multiple of 1 / STEPS_PER_UNIT, at least LEAST_QUERIES_PER_OBJECT"""
    coverage: float
    """Share of the images with at least as many queries as objects"""
    images_beyond_ceiling: int
    """Images with more objects than max_queries, which no setting covers"""


def calibrate(
    queries_at: Callable[[float], np.ndarray],
    object_counts: np.ndarray,
    *,
    coverage: float,
    min_queries: int,
    max_queries: int,
) -> Calibration:
    """Fit the queries per object on N images.

    queries_at      queries per object -> (N,) queries of each image; grows with its argument, lies in
                    [min_queries, max_queries], and is at the ceiling for max_queries per object unless the
                    estimate is 0
    object_counts   (N,)  objects annotated
    coverage        required share, in (0, 1]

    Raises ValueError without images, and UnreachableCoverageError with the best reachable coverage and what limits it.
    """
    if not len(object_counts):
        raise ValueError("there are no images to calibrate on")

    def coverage_at(step: int) -> float:
        return float((queries_at(step / STEPS_PER_UNIT) >= object_counts).mean())

    highest = max_queries * STEPS_PER_UNIT
    if coverage_at(highest) < coverage:
        missed = object_counts[queries_at(float(max_queries)) < object_counts]
        reason = _limits(missed, len(object_counts), coverage, min_queries, max_queries)
        raise UnreachableCoverageError(reason)
    steps = range(round(LEAST_QUERIES_PER_OBJECT * STEPS_PER_UNIT), highest + 1)
    step = steps[bisect_left(steps, True, key=lambda step: coverage_at(step) >= coverage)]
    return Calibration(step / STEPS_PER_UNIT, coverage_at(step), int((object_counts > max_queries).sum()))


def calibrate_floor(
    queries_at: Callable[[float, int], np.ndarray], object_counts: np.ndarray, *, coverage: float, max_queries: int
) -> tuple[int, Calibration]:
    """Fit the least number of queries too: of all pairs with that coverage, the one with the fewest on average.

    queries_at   queries per object, least number of queries -> (N,) queries of each image; otherwise as `calibrate`

    Raises what `calibrate` raises.
    """
    best: tuple[float, int, Calibration] | None = None
    for floor in np.unique(np.clip(object_counts, 1, max_queries)).tolist():  # coverage changes at these alone
        try:
            found = calibrate(
                partial(_at_floor, queries_at, floor),
                object_counts,
                coverage=coverage,
                min_queries=floor,
                max_queries=max_queries,
            )
        except UnreachableCoverageError as error:
            unreachable = error
            continue
        mean = float(queries_at(found.queries_per_object, floor).mean())
        if best is None or mean < best[0]:
            best = mean, floor, found
    if best is None:
        raise unreachable
    return best[1], best[2]


def _at_floor(queries_at: Callable[[float, int], np.ndarray], floor: int, queries_per_object: float) -> np.ndarray:
    return queries_at(queries_per_object, floor)


def _limits(missed: np.ndarray, images: int, coverage: float, min_queries: int, max_queries: int) -> str:
    """Best reachable coverage, causes and remedies; `missed`: object counts of the images that no setting covers."""
    without_estimate = np.sort(missed[missed <= max_queries])  # any other estimate reaches the ceiling
    beyond_ceiling = len(missed) - len(without_estimate)
    best = (images - len(missed)) / images
    causes = []
    if len(without_estimate):
        causes.append(
            f"Images with more objects than min_queries {min_queries}, but an estimate of 0: {len(without_estimate)}"
        )
    if beyond_ceiling:
        causes.append(f"Images with more objects than the ceiling of {max_queries} queries: {beyond_ceiling}")
    remedies = []
    enough = np.arange(1, images + 1) / images >= coverage  # images covered -> whether that suffices
    more = int(enough.argmax()) + 1 - (images - len(missed))
    if more <= len(without_estimate):
        remedies.append(f"min_queries {without_estimate[more - 1]:.0f}")
    if best > 0:
        remedies.append(f"a coverage of at most {int(best * 10_000) / 10_000:g}")
    remedies.append("a detector with a longer query table" if beyond_ceiling else "a longer training of the density")
    return (
        f"coverage {coverage:g} cannot be reached; the best is {best:.4g} of {images} images, whatever the queries per "
        f"object. {'. '.join(causes)}. Choose {', or '.join(remedies)}"
    )
