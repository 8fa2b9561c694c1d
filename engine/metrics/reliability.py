"""How well scores match the share of detections that are right: reliability diagram and calibration error."""

from dataclasses import dataclass

import numpy as np

from engine.metrics.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, DetectionMatches
from engine.metrics.records import BoolArray, FloatArray, IntArray

BINS = 15
"""Of the diagram and its error."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Detections by score in B bins of equal width, the first from 0, the last to 1."""

    detections: IntArray
    """(B,)"""
    mean_score: FloatArray
    """(B,) NaN in an empty bin"""
    precision: FloatArray
    """(B,) share of the detections that are right; NaN in an empty bin"""

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |mean score - precision| over bins, weighted by detections; NaN if empty.

        Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
        """
        total = self.detections.sum()
        gaps = np.abs(self.mean_score - self.precision)[self.detections > 0] * self.detections[self.detections > 0]
        return float(gaps.sum() / total) if total else float("nan")


def reliability(scores: FloatArray, correct: BoolArray) -> Reliability:
    """The diagram of N detections, (N,) scores in [0, 1] and (N,) whether each is right."""
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    detections = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, scores, minlength=BINS) / detections
        precision = np.bincount(place, correct, minlength=BINS) / detections
    return Reliability(detections, mean_score, precision)


def matched_reliability(matches: DetectionMatches | None, threshold: int) -> Reliability:
    """The diagram of all matched detections at one IoU threshold, by its index; those that the protocol ignores are
    neither right nor wrong, nor are those beyond its limit per image and class."""
    if matches is None:
        return reliability(np.zeros(0), np.zeros(0, np.bool_))
    state = np.where(matches.in_area[0], FALSE_POSITIVE, IGNORED)
    candidate = matches.column >= 0
    state[candidate] = matches.states[0, threshold][matches.column[candidate]]
    counted = state != IGNORED
    return reliability(matches.scores[counted].clip(0, 1), state[counted] == TRUE_POSITIVE)
