"""Error types: cases worked out by hand, sums on random images, and the recorded numbers of tidecv."""

import gzip
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.analysis.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    FALSE_POSITIVES,
    FOUND,
    IGNORED,
    LOCALISATION,
    MISSED,
    MISSES,
    REACHED_BY_CLASSIFICATION,
    REACHED_BY_LOCALISATION,
    ImageErrors,
    find_errors,
)
from engine.analysis.fixes import KINDS, SPECIAL, delta_precisions, error_columns, join_errors
from engine.metrics.average_precision import ImageRecord, detection_metrics
from tests.engine.metrics.test_average_precision import PLAIN, record
from tests.support.tide_reference import FILE, SETTINGS, random_records, tide_numbers

TENTHS = np.array([x / 100 for x in range(101)])
"""The recall thresholds of tidecv, which differ from the evaluator's by rounding"""


def analysed(image: ImageRecord, limit: int = 100) -> ImageErrors:
    return find_errors(image, max_detections=limit)


def gains(records: list[ImageRecord], classes: int, recalls: np.ndarray = TENTHS) -> dict[str, float]:
    return delta_precisions(join_errors([error_columns(each, analysed(each)) for each in records], classes), recalls)


BOX, NEAR, FAR = (10, 10, 10, 10), (14, 10, 10, 10), (50, 50, 10, 10)
"""IoU of NEAR with BOX: 60 / 140 = 0.43"""


@pytest.mark.parametrize(
    ("box", "label", "expected", "miss"),
    [
        (BOX, 0, CORRECT, FOUND),
        (NEAR, 0, LOCALISATION, REACHED_BY_LOCALISATION),
        (BOX, 1, CLASSIFICATION, REACHED_BY_CLASSIFICATION),
        (NEAR, 1, BOTH, MISSED),
        (FAR, 0, BACKGROUND, MISSED),
        ((10, 10, 10, 5), 0, CORRECT, FOUND),  # IoU 0.5 is a hit
        ((10, 10, 10, 1), 0, LOCALISATION, REACHED_BY_LOCALISATION),  # 0.1 is not background
        ((10, 10, 10, 1), 1, BACKGROUND, MISSED),  # but it is for another class
        ((10, 10, 10, 5), 1, CLASSIFICATION, REACHED_BY_CLASSIFICATION),
    ],
)
def test_one_detection_of_one_object(box: tuple[int, ...], label: int, expected: int, miss: int) -> None:
    found = analysed(record(gt=[BOX], dets=[(box, 0.9)], labels=[label]))
    assert found.types.tolist() == [expected]
    assert found.misses.tolist() == [miss]


def test_a_second_detection_is_a_duplicate_and_the_better_score_keeps_the_object() -> None:
    found = analysed(record(gt=[BOX], dets=[((11, 10, 10, 10), 0.6), (BOX, 0.4), (NEAR, 0.3)]))
    assert found.types.tolist() == [CORRECT, DUPLICATE, LOCALISATION]
    assert found.fixes.tolist() == [-1, -1, -1]  # the object is taken
    assert found.taken_by.tolist() == [0]


def test_the_best_score_of_several_errors_is_the_one_to_fix() -> None:
    found = analysed(record(gt=[BOX], dets=[(NEAR, 0.3), (BOX, 0.8), (NEAR, 0.5)], labels=[0, 1, 0]))
    assert found.types.tolist() == [CLASSIFICATION, LOCALISATION, LOCALISATION]
    assert found.fixes.tolist() == [0, -1, -1]
    assert found.misses.tolist() == [REACHED_BY_CLASSIFICATION]


def test_crowd_regions_are_neither_objects_nor_errors() -> None:
    image = record(gt=[BOX, (40, 40, 30, 30)], dets=[((45, 45, 5, 5), 0.9), ((45, 45, 5, 5), 0.8)], crowd=[False, True])
    found = analysed(replace(image, labels=np.array([0, 1])))
    assert found.types.tolist() == [IGNORED, BACKGROUND]  # a crowd of its own class only
    assert found.objects.tolist() == [0]


def test_the_limit_is_per_class() -> None:
    image = record(gt=[BOX, FAR], dets=[(FAR, 0.9), (BOX, 0.8), (BOX, 0.7)], labels=[0, 0, 1])
    assert analysed(image, 1).rows.tolist() == [0, 2]


def test_dap_by_hand() -> None:
    """Two objects; a hit, then a background, then a localisation error: precision 1 up to recall 0.5."""
    image = record(gt=[BOX, FAR], dets=[(BOX, 0.9), ((80, 80, 5, 5), 0.8), ((54, 50, 10, 10), 0.7)])
    found = gains([image], 1)
    half, whole = 51 / 101, 50 / 101
    assert found["AP"] == pytest.approx(half)
    assert found["localisation"] == pytest.approx(whole * 2 / 3)
    assert found["background"] == found["duplicate"] == found["missed"] == 0
    assert found["false positives"] == 0  # precision was 1 as far as recall went
    assert found["false negatives"] == pytest.approx(1 - half)


def test_nothing_to_find_and_nothing_found() -> None:
    assert all(np.isnan(value) for value in gains([record()], 2).values())
    assert all(np.isnan(value) for value in gains([], 2).values())
    found = gains([record(gt=[BOX])], 1)
    assert found["AP"] == 0
    assert np.isnan(found["missed"])  # nothing is left to measure
    assert gains([record(gt=[BOX]), record(2, dets=[(BOX, 0.5)])], 1)["missed"] == 0


@pytest.mark.parametrize("seed", range(40))
def test_types_sum_to_all_false_positives_and_to_all_misses(seed: int) -> None:
    """Also with crowds, saturated images, ties, and objects inside of each other; AP is the evaluator's."""
    rng = np.random.default_rng(seed)
    records = random_records(
        seed, images=3, classes=3, objects=int(rng.integers(3, 80)), noise=rng.uniform(0, 4), crowds=seed % 3
    )
    if seed % 2:
        records = [replace(each, scores=each.scores.round(1)) for each in records]
    limit = int(rng.integers(5, 60))
    protocol = replace(PLAIN, max_detections=(limit,))
    parts = [(each, analysed(each, limit)) for each in records]
    metrics = detection_metrics(records, 3, protocol)
    for image, found in parts:
        correct, ignored = (found.types == CORRECT).sum(), (found.types == IGNORED).sum()
        wrong = sum((found.types == code).sum() for code in FALSE_POSITIVES.values())
        assert correct + ignored + wrong == sum(min(limit, (image.labels == k).sum()) for k in range(3))
        missed = sum((found.misses == code).sum() for code in MISSES.values())
        assert missed + correct == (~image.gt_crowd).sum()
        assert set(found.fixes[found.fixes >= 0]) == set(
            np.flatnonzero((found.misses > FOUND) & (found.misses < MISSED))
        )
    dap = delta_precisions(
        join_errors([error_columns(*part) for part in parts], 3), np.array(protocol.recall_thresholds)
    )
    assert dap["AP"] == pytest.approx(metrics.summary()["mAP_50"], abs=1e-12)


def recorded() -> list[dict[str, Any]]:
    with gzip.open(FILE, "rt") as file:
        return list(json.load(file))


def compared(case: dict[str, Any]) -> list[str]:
    """The figures whose definitions agree: in a crowd, tidecv also fixes what is ignored."""
    names = ["AP", *KINDS, *SPECIAL]
    crowds = any(any(image["gt_crowd"]) for image in case["records"])
    return [name for name in names if not crowds or name not in ("localisation", "classification", "missed")]


@pytest.mark.parametrize("case", recorded(), ids=lambda case: case["name"])
def test_equals_tidecv(case: dict[str, Any]) -> None:
    records = [ImageRecord(**image) for image in case["records"]]
    classes = 1 + max(max(image["gt_labels"]) for image in case["records"])
    found = gains(records, classes)
    for name in compared(case):
        assert found[name] == pytest.approx(case["dAP"][name], abs=1e-9), name
    if len(compared(case)) == len(found):
        types = np.concatenate([analysed(each).types for each in records])
        misses = np.concatenate([analysed(each).misses for each in records])
        ours = {name: int((types == code).sum()) for name, code in FALSE_POSITIVES.items()}
        assert ours | {"missed": int((misses == MISSED).sum())} == case["counts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_tidecv_live(name: str) -> None:
    pytest.importorskip("tidecv", reason="compares with the package tidecv, where it is installed")
    for seed in range(100, 110):
        records = random_records(seed, **SETTINGS[name])
        case = tide_numbers(records) | {"records": [vars(each) for each in records]}
        found = gains(records, SETTINGS[name]["classes"])
        assert [found[n] for n in compared(case)] == pytest.approx([case["dAP"][n] for n in compared(case)], abs=1e-9)
