"""Causes of misses: one object by hand for each, and detectors with one planted fault."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from engine.analysis.causes import CAUSES, HIT, ObjectCauses, QueryStarts, find_causes
from engine.analysis.errors import find_errors
from engine.metrics.average_precision import ImageRecord
from tests.engine.analysis import planted
from tests.engine.metrics.test_average_precision import record

OBJECT = (20, 20, 8, 8)
"""Centre (24, 24)"""
AWAY = (90, 90, 8, 8)


def caused(image: ImageRecord, starts: QueryStarts | None, threshold: float = 0.3) -> ObjectCauses:
    return find_causes(image, find_errors(image, max_detections=1500), starts, score_threshold=threshold)


def name(found: ObjectCauses, index: int = 0) -> str:
    return "hit" if found.causes[index] == HIT else CAUSES[found.causes[index]]


def starting(*centres: tuple[float, float], queries: int = 1, of: tuple[int, ...] = (0,)) -> QueryStarts:
    return QueryStarts(np.array(centres, np.float32).reshape(-1, 2), queries, np.array(of, np.int64))


@pytest.mark.parametrize(
    ("box", "score", "label", "start", "expected"),
    [
        (OBJECT, 0.9, 0, (24, 24), "hit"),
        (OBJECT, 0.9, 0, (90, 90), "hit"),  # wherever it came from
        (OBJECT, 0.2, 0, (24, 24), "score"),
        (OBJECT, 0.2, 0, (90, 90), "score"),  # it ended on the object
        (OBJECT, 0.9, 1, (24, 24), "class"),
        (OBJECT, 0.2, 1, (24, 24), "score"),
        ((22, 22, 8, 8), 0.9, 0, (24, 24), "box"),
        ((22, 22, 8, 8), 0.2, 0, (24, 24), "score"),
        (AWAY, 0.9, 0, (24, 32), "score"),  # 8 px away is within reach
        (AWAY, 0.9, 0, (24, 32.1), "ranking"),
        (AWAY, 0.9, 0, (94, 94), "ranking"),
    ],
)
def test_one_query_and_one_object(
    box: tuple[int, ...], score: float, label: int, start: tuple[float, float], expected: str
) -> None:
    image = record(gt=[OBJECT], dets=[(box, score)], labels=[label])
    assert name(caused(image, starting(start))) == expected


def test_reach_grows_with_the_object() -> None:
    image = record(gt=[(20, 20, 40, 10)], dets=[(AWAY, 0.9)])  # centre (40, 25), longer side 40
    assert name(caused(image, starting((79, 25)))) == "score"
    assert name(caused(image, starting((81, 25)))) == "ranking"


def test_twice_the_budget_would_have_reached_it() -> None:
    image = record(gt=[OBJECT], dets=[(AWAY, 0.9)])
    assert name(caused(image, starting((94, 94), (25, 25)))) == "budget"
    assert name(caused(image, starting((94, 94), (50, 50)))) == "ranking"


def test_more_objects_than_queries_are_a_matter_of_the_budget() -> None:
    """Three objects, one query, which has found one: a perfect ranking leaves two without a query."""
    image = record(gt=[OBJECT, (60, 60, 8, 8), AWAY], dets=[(OBJECT, 0.9)])
    found = caused(image, starting((24, 24), (0, 0)))
    assert [name(found, i) for i in range(3)] == ["hit", "budget", "budget"]
    found = caused(image, starting((24, 24), (0, 0), (0, 1), (1, 1), queries=2))
    assert sorted(name(found, i) for i in range(3)) == ["budget", "hit", "ranking"]


def test_a_query_that_has_found_a_neighbour_is_not_there_for_another() -> None:
    neighbours = [OBJECT, (28, 20, 8, 8)]
    image = record(gt=neighbours, dets=[(OBJECT, 0.9)])
    assert name(caused(image, starting((26, 24), (99, 99))), 1) == "budget"
    unsure = record(gt=neighbours, dets=[(OBJECT, 0.1)])
    assert name(caused(unsure, starting((26, 24), (99, 99))), 1) == "score"


def test_the_offset_is_of_centre_and_size() -> None:
    found = caused(record(gt=[OBJECT], dets=[((22, 22, 8, 8), 0.9)]), starting((24, 24)))
    assert found.offsets.tolist() == [[2, 2, 0, 0]]
    found = caused(record(gt=[OBJECT], dets=[((20, 20, 4, 4), 0.9)]), starting((24, 24)))
    assert found.offsets.tolist() == [[-2, -2, -4, -4]]


def test_without_query_starts() -> None:
    assert name(caused(record(gt=[OBJECT], dets=[(AWAY, 0.9)]), None)) == "nothing"
    assert name(caused(record(gt=[OBJECT], dets=[]), None)) == "nothing"
    assert name(caused(record(gt=[OBJECT], dets=[(OBJECT, 0.1)]), None)) == "score"
    assert name(caused(record(gt=[OBJECT], dets=[(OBJECT, 0.9)], labels=[1]), None)) == "class"


def test_no_objects_no_detections_and_no_queries() -> None:
    assert len(caused(record(), starting(queries=0, of=())).causes) == 0
    assert name(caused(record(gt=[OBJECT]), starting(queries=0, of=()))) == "budget"
    crowd = record(gt=[OBJECT], crowd=[True])
    assert len(caused(crowd, starting(queries=0, of=())).causes) == 0


def counted(images: list[planted.Image]) -> Counter[str]:
    """Causes of all objects."""
    found: Counter[str] = Counter()
    for image, starts in images:
        causes = caused(image, starts)
        found.update(name(causes, i) for i in range(len(causes.causes)))
    return found


FAULTS = {
    "budget": lambda: planted.simulate(3, budget=30),
    "ranking": lambda: planted.simulate(3, shuffled=True),
    "box": lambda: planted.changed(planted.simulate(3), planted.shifted),
    "class": lambda: planted.changed(planted.simulate(3), planted.permuted),
    "score": lambda: planted.changed(planted.simulate(3), planted.halved),
}


@pytest.mark.parametrize("cause", FAULTS)
def test_a_planted_fault_raises_its_own_cause_alone(cause: str) -> None:
    before, after = counted(planted.simulate(3)), counted(FAULTS[cause]())
    assert before["hit"] > 0.95 * before.total()
    raised = {each: after[each] - before[each] for each in CAUSES}
    assert raised.pop(cause) > 0.5 * before.total()
    assert max(raised.values()) <= 0.1 * (before.total() - after["hit"]), raised


def test_causes_cover_every_missed_object() -> None:
    rng = np.random.default_rng(5)
    for image, starts in planted.simulate(8, budget=60):
        noisy = replace(
            image,
            boxes=image.boxes + rng.normal(0, 3, image.boxes.shape) * [1, 1, 0, 0],
            labels=rng.integers(0, planted.CLASSES, len(image.labels)),
        )
        for known in (starts, None):
            found = caused(noisy, known)
            errors = find_errors(noisy, max_detections=1500)
            hit = np.isin(np.arange(len(found.causes)), errors.match[noisy.scores[errors.rows] >= 0.3])
            assert ((found.causes == HIT) == hit).all()
            assert (np.isfinite(found.offsets).all(axis=1) == (found.causes == CAUSES.index("box"))).all()
