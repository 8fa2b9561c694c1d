"""The errors and causes of all images, collected image by image in little memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.analysis.causes import CAUSES, HIT, ObjectCauses, QueryStarts, find_causes
from engine.analysis.errors import CORRECT, IGNORED, ImageErrors, find_errors
from engine.analysis.fixes import ErrorTable, error_columns, join_errors
from engine.analysis.oracles import OracleColumns, join_oracles, oracle_columns
from engine.metrics.records import FloatArray, ImageRecord, IntArray


@dataclass(frozen=True, eq=False)
class Atlas:
    """The errors of I images; M objects."""

    errors: ErrorTable
    oracles: OracleColumns
    causes: NDArray[np.int8]
    """(M,) index in CAUSES, or HIT"""
    areas: FloatArray
    """(M,) px^2"""
    objects_in_image: IntArray
    """(M,) objects of the image that holds the object"""
    offsets: FloatArray
    """(M, 4) as in `ObjectCauses`"""
    confusion: IntArray
    """(K + 1, K + 1) object's class by detection's class, at the score threshold; the last is none"""
    image_ids: IntArray
    """(I,)"""
    objects: IntArray
    """(I,) without crowd regions"""
    missed: IntArray
    """(I,) at the score threshold"""
    false_alarms: IntArray
    """(I,) at the score threshold"""
    score_threshold: float
    has_queries: bool
    """Whether it is known where queries started"""


@dataclass(eq=False)
class AtlasBuilder:
    """Takes the images one after the other.

    max_detections    per image and class
    score_threshold   of the causes, and of what counts as a false alarm
    """

    num_classes: int
    max_detections: int
    score_threshold: float
    _errors: list[dict[str, np.ndarray]] = field(default_factory=list)
    _oracles: list[OracleColumns] = field(default_factory=list)
    _objects: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _images: list[tuple[int, int, int, int]] = field(default_factory=list)
    _queries: int = 0

    def __post_init__(self) -> None:
        self._confusion = np.zeros((self.num_classes + 1, self.num_classes + 1), np.int64)

    def add(self, record: ImageRecord, starts: QueryStarts | None) -> None:
        """One more image; starts are None where they are not known."""
        errors, causes = self.explain(record, starts)
        missed = causes.causes != HIT
        alarms = (record.scores[errors.rows] >= self.score_threshold) & ~np.isin(errors.types, (CORRECT, IGNORED))
        count = np.full(len(errors.objects), len(errors.objects))
        self._errors.append(error_columns(record, errors))
        self._oracles.append(oracle_columns(record, errors, causes))
        self._objects.append((causes.causes, record.gt_areas[errors.objects], count, causes.offsets))
        self._images.append((record.image_id, len(missed), int(missed.sum()), int(alarms.sum())))
        self._queries += starts is not None
        self._confuse(record, errors, causes, alarms)

    def explain(self, record: ImageRecord, starts: QueryStarts | None) -> tuple[ImageErrors, ObjectCauses]:
        """Errors and causes of one image."""
        errors = find_errors(record, max_detections=self.max_detections)
        return errors, find_causes(record, errors, starts, score_threshold=self.score_threshold)

    def _confuse(self, record: ImageRecord, errors: ImageErrors, causes: ObjectCauses, alarms: np.ndarray) -> None:
        """Found objects on the diagonal, those of the cause "class" beside it, all others missed; alarms besides."""
        labels, detected = record.gt_labels[errors.objects], record.labels[errors.rows]
        wrong = _wrong_class(causes)
        found = np.where(causes.causes == HIT, labels, self.num_classes)
        found[wrong >= 0] = detected[wrong[wrong >= 0]]
        np.add.at(self._confusion, (labels, found), 1)
        alone = alarms.copy()
        alone[wrong[wrong >= 0]] = False
        np.add.at(self._confusion[self.num_classes], detected[alone], 1)

    def finish(self) -> Atlas:
        """The atlas of all images so far."""
        columns: Sequence[tuple[np.ndarray, ...]] = self._objects or [
            (np.zeros(0, np.int8), np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)))
        ]
        causes, areas, counts, offsets = (np.concatenate(column) for column in zip(*columns, strict=True))
        images = np.array(self._images, np.int64).reshape(-1, 4)
        return Atlas(
            errors=join_errors(self._errors, self.num_classes),
            oracles=join_oracles(self._oracles),
            causes=causes,
            areas=areas,
            objects_in_image=counts,
            offsets=offsets,
            confusion=self._confusion,
            image_ids=images[:, 0],
            objects=images[:, 1],
            missed=images[:, 2],
            false_alarms=images[:, 3],
            score_threshold=self.score_threshold,
            has_queries=bool(self._images) and self._queries == len(self._images),
        )


def _wrong_class(causes: ObjectCauses) -> IntArray:
    """(G,) detection of a wrong class that has the object, each detection once, else -1."""
    wrong = np.full(len(causes.causes), -1)
    places = np.flatnonzero(causes.causes == CAUSES.index("class"))
    _, first = np.unique(causes.near[places], return_index=True)
    wrong[places[first]] = causes.near[places[first]]
    return wrong
