"""Precision, recall and F1 over the score threshold, and the threshold with the best F1."""

from dataclasses import dataclass

import numpy as np

from engine.analysis.errors import CORRECT
from engine.analysis.fixes import ErrorTable
from engine.metrics.records import FloatArray

THRESHOLDS = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True, eq=False)
class ScoreCurves:
    """At an IoU of 0.5, for K classes and S score thresholds; NaN for a class without objects."""

    thresholds: FloatArray
    """(S,)"""
    precision: FloatArray
    """(K, S); 1 where nothing is shown"""
    recall: FloatArray
    """(K, S)"""

    @property
    def f1(self) -> FloatArray:
        """(K, S)"""
        both = self.precision + self.recall
        return np.where(both > 0, 2 * self.precision * self.recall / np.where(both > 0, both, 1), both)

    def mean_f1(self) -> FloatArray:
        """(S,) over the classes with objects; NaN without any."""
        return mean_of_classes(self.f1)

    def best(self) -> tuple[float, float]:
        """Threshold and F1 where the mean F1 is highest; NaN without objects."""
        means = self.mean_f1()
        if np.isnan(means).all():
            return np.nan, np.nan
        place = int(np.nanargmax(means))
        return float(self.thresholds[place]), float(means[place])


def score_curves(table: ErrorTable) -> ScoreCurves:
    """The curves of all classes."""
    objects = np.bincount(table.object_labels, minlength=table.num_classes)
    precision, recall = np.full((2, table.num_classes, len(THRESHOLDS)), np.nan)
    for label in np.flatnonzero(objects):
        mine = table.labels == label
        shown = _at_least(table.scores[mine])
        hits = _at_least(table.scores[mine & (table.types == CORRECT)])
        precision[label] = np.where(shown > 0, hits / np.maximum(shown, 1), 1.0)
        recall[label] = hits / objects[label]
    return ScoreCurves(THRESHOLDS, precision, recall)


def mean_of_classes(values: FloatArray) -> FloatArray:
    """(K, S) -> (S,) mean over the classes that have objects; NaN without any."""
    known = values[~np.isnan(values).any(axis=1)]
    return known.mean(axis=0) if len(known) else np.full(values.shape[1], np.nan)


def _at_least(scores: FloatArray) -> FloatArray:
    """(S,) how many scores reach each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left").astype(np.float64)
