"""How well the number of objects is estimated, and whether the queries suffice for them."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

COUNT_BINS: dict[str, tuple[float, float]] = {
    "0": (0, 0),
    "1-10": (1, 10),
    "11-50": (11, 50),
    "51-100": (51, 100),
    "101-500": (101, 500),
    ">500": (501, math.inf),
}
"""Objects per image, both bounds inclusive. Together they hold every image."""


def count_metrics(
    predicted_counts: ArrayLike | None,
    num_queries: ArrayLike,
    object_counts: ArrayLike,
    expected_counts: ArrayLike | None = None,
) -> dict[str, float]:
    """Statistics over N images, then over the images of each count bin under keys such as `count_MAE_11-50`.

    predicted_counts   (N,)  objects per image by the density map; need not be whole; None without an estimate:
                             its MAE and bias are NaN
    num_queries        (N,)  queries spent on the image
    object_counts      (N,)  objects annotated
    expected_counts    (N,)  objects per image by the scores; None as above
    returns                  images; count_MAE and count_bias (predicted - annotated), expected_MAE and expected_bias,
                             in objects; coverage, the share of images with num_queries >= object_counts;
                             mean_queries. NaN where there is no image

    Raises ValueError for arrays that are not 1-D, of unequal lengths, not finite, or negative object counts.
    """
    columns = {
        "predicted_counts": np.asarray(object_counts if predicted_counts is None else predicted_counts, np.float64),
        "expected_counts": np.asarray(object_counts if expected_counts is None else expected_counts, np.float64),
        "num_queries": np.asarray(num_queries, np.float64),
        "object_counts": np.asarray(object_counts, np.float64),
    }
    expected = (columns["object_counts"].size,)
    for name, values in columns.items():
        if values.shape != expected:
            raise ValueError(f"{name} has shape {values.shape}; expected {expected}, one number for each image")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}[{int(np.argmin(np.isfinite(values)))}] is not finite")
    predicted, expected_objects, queries, objects = columns.values()
    if predicted_counts is None:
        predicted = np.full_like(objects, math.nan)
    if expected_counts is None:
        expected_objects = np.full_like(objects, math.nan)
    if (objects < 0).any():
        raise ValueError(f"object_counts[{int(np.argmin(objects))}] is {objects.min():g}; counts cannot be negative")
    metrics = _statistics(predicted, expected_objects, queries, objects)
    for name, (low, high) in COUNT_BINS.items():
        chosen = (objects >= low) & (objects <= high)
        of_bin = _statistics(predicted[chosen], expected_objects[chosen], queries[chosen], objects[chosen])
        metrics |= {f"{key}_{name}": value for key, value in of_bin.items()}
    return metrics


def _statistics(
    predicted: NDArray[np.float64],
    expected: NDArray[np.float64],
    queries: NDArray[np.float64],
    objects: NDArray[np.float64],
) -> dict[str, float]:
    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else math.nan

    return {
        "images": float(len(objects)),
        "count_MAE": mean(np.abs(predicted - objects)),
        "count_bias": mean(predicted - objects),
        "expected_MAE": mean(np.abs(expected - objects)),
        "expected_bias": mean(expected - objects),
        "coverage": mean(queries >= objects),
        "mean_queries": mean(queries),
    }
