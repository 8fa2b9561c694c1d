"""How well scores match the share of detections that are right: reliability diagram and calibration error."""

from collections.abc import Sequence
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


def joined(diagrams: Sequence[Reliability]) -> Reliability:
    """One diagram of the detections of several."""
    detections = np.sum([diagram.detections for diagram in diagrams], axis=0)
    with np.errstate(invalid="ignore"):
        scores, precision = (
            np.nansum([getattr(diagram, name) * diagram.detections for diagram in diagrams], axis=0) / detections
            for name in ("mean_score", "precision")
        )
    return Reliability(detections, scores, precision)


@dataclass(frozen=True)
class OperatingPoint:
    """Detections of all classes from one score on; NaN where there is nothing to measure."""

    precision: float
    recall: float


def operating_point(matches: DetectionMatches, score: float) -> OperatingPoint:
    """At the lowest IoU threshold; ignored detections do not count."""
    counted, correct = _outcomes(matches, 0)
    chosen = counted & (matches.scores >= score)
    hits, shown, objects = int((chosen & correct).sum()), int(chosen.sum()), int(matches.num_objects[:, 0].sum())
    return OperatingPoint(hits / shown if shown else np.nan, hits / objects if objects else np.nan)


def matched_reliability(matches: DetectionMatches | None, threshold: int, *, least_score: float = 0.0) -> Reliability:
    """The diagram of all matched detections at one IoU threshold, by its index; those that the protocol ignores are
    neither right nor wrong, nor are those beyond its limit per image and class."""
    if matches is None:
        return reliability(np.zeros(0), np.zeros(0, np.bool_))
    counted, correct = _outcomes(matches, threshold)
    counted &= matches.scores >= least_score
    return reliability(matches.scores[counted].clip(0, 1), correct[counted])


def _outcomes(matches: DetectionMatches, threshold: int) -> tuple[BoolArray, BoolArray]:
    """Whether each of D detections counts, and whether it is right, both (D,); objects of every area."""
    state = np.where(matches.in_area[0], FALSE_POSITIVE, IGNORED)
    candidate = matches.column >= 0
    state[candidate] = matches.states[0, threshold][matches.column[candidate]]
    return state != IGNORED, state == TRUE_POSITIVE
