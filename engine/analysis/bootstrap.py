"""How sure is a difference? Intervals of AP and its difference by a paired bootstrap over the images.

A resample takes as many images as there are, with replacement; both results are evaluated on the same ones. An image
drawn n times counts n times in every sum, so that nothing is matched again. Source: Efron and Tibshirani, An
Introduction to the Bootstrap, 1993 (percentile intervals).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.metrics.average_precision import AREA_SUFFIX, match_records
from engine.metrics.matching import FALSE_POSITIVE, TRUE_POSITIVE, DetectionMatches, join_matches
from engine.metrics.protocols import EvaluationProtocol
from engine.metrics.records import FloatArray, ImageRecord, IntArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure of two results; shares in [0, 1]."""

    first: float
    second: float
    low: float
    """Of the difference, second less first: 2.5th percentile"""
    high: float
    """97.5th percentile"""

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class _Lists:
    """Detections of a class in an area, by descending score: C candidates among D."""

    hits: np.ndarray
    """(T, C)"""
    false: np.ndarray
    """(T, C)"""
    image: IntArray
    """(C,)"""
    background: np.ndarray
    """(D,) false at every threshold, not among the candidates"""
    all_images: IntArray
    """(D,)"""
    place: IntArray
    """(C,) in D"""
    objects: IntArray
    """(I,) that count"""


class ResampledAP:
    """AP of one result under weights of its images.

    The best limit of the protocol; figures as in `DetectionMetrics.summary`: mAP, mAP_50, mAP_75 and one per area.
    """

    def __init__(self, records: Sequence[ImageRecord], num_classes: int, protocol: EvaluationProtocol) -> None:
        matches = [match_records([record], num_classes, protocol) for record in records]
        self.protocol = protocol
        self.lists = list(_class_lists([each for each in matches if each is not None], num_classes, protocol))
        self.names = ["mAP", *self._single(), *(f"mAP_{AREA_SUFFIX.get(a, a)}" for a in [*protocol.areas][1:])]

    def __call__(self, weights: IntArray) -> FloatArray:
        """(I,) times that each image counts -> figures in the order of `names`, NaN where there is nothing to find."""
        recalls, thresholds = np.array(self.protocol.recall_thresholds), len(self.protocol.iou_thresholds)
        precision = np.full((len(self.lists), len(self.protocol.areas), thresholds), np.nan)
        for k, areas in enumerate(self.lists):
            for a, lists in enumerate(areas):
                objects = int(weights @ lists.objects)
                if objects:
                    precision[k, a] = _average_precisions(lists, weights, objects, recalls)
        singles = [precision[:, 0, t] for t in self._single().values()]
        columns = [precision[:, 0], *singles, *(precision[:, a] for a in range(1, precision.shape[1]))]
        return np.array([np.nan if np.isnan(each).all() else np.nanmean(each) for each in columns])

    def _single(self) -> dict[str, int]:
        ious = self.protocol.iou_thresholds
        places = {f"mAP_{round(100 * t)}": i for i, t in enumerate(ious)}
        return {name: places[name] for name in ("mAP_50", "mAP_75") if name in places}


def paired_intervals(
    first: ResampledAP, second: ResampledAP, num_images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of all figures that both can measure; images in the same order."""
    whole = np.ones(num_images, np.int64)
    ones, twos = first(whole), second(whole)
    random = np.random.default_rng(seed)
    differences = np.empty((resamples, len(ones)))
    for row in differences:
        weights = np.bincount(random.integers(num_images, size=num_images), minlength=num_images)
        row[:] = second(weights) - first(weights)
    found = {}
    for i, name in enumerate(first.names):
        known = differences[~np.isnan(differences[:, i]), i]
        if np.isfinite(ones[i]) and np.isfinite(twos[i]) and len(known):
            low, high = np.percentile(known, [2.5, 97.5])
            found[name] = Interval(float(ones[i]), float(twos[i]), float(low), float(high))
    return found


def _class_lists(
    parts: list[DetectionMatches], num_classes: int, protocol: EvaluationProtocol
) -> Iterator[list[_Lists]]:
    if not parts:
        return
    image = np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
    objects = np.stack([part.num_objects for part in parts])  # (I, K, A)
    matches = join_matches(parts)
    for k in range(num_classes):
        of_class = np.flatnonzero(matches.labels == k)
        listed = of_class[np.argsort(-matches.scores[of_class], kind="stable")]
        place = np.flatnonzero(matches.column[listed] >= 0)
        column, all_images = matches.column[listed[place]], image[listed]
        candidate_images = all_images[place]
        yield [
            _Lists(
                hits=matches.states[a][:, column] == TRUE_POSITIVE,
                false=matches.states[a][:, column] == FALSE_POSITIVE,
                image=candidate_images,
                background=matches.in_area[a, listed] & (matches.column[listed] < 0),
                all_images=all_images,
                place=place,
                objects=objects[:, k, a],
            )
            for a in range(len(protocol.areas))
        ]


def _average_precisions(lists: _Lists, weights: IntArray, objects: int, recalls: FloatArray) -> FloatArray:
    """(T,) as `detection_metrics` samples it."""
    own = weights[lists.image]
    background = np.cumsum(weights[lists.all_images] * lists.background)[lists.place]
    hits = np.cumsum(own * lists.hits, axis=1)
    false = np.cumsum(own * lists.false, axis=1) + background
    precision = hits / (hits + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(hits), len(recalls)))
    for t in range(len(hits)):
        places = np.searchsorted(hits[t] / objects, recalls, side="left")
        reached = places < hits.shape[1]
        sampled[t, reached] = precision[t, places[reached]]
    return sampled.mean(axis=1)
