"""The paired bootstrap: weights count as repeated images do, and intervals find what differs."""

from dataclasses import replace

import numpy as np
import pytest

from engine.analysis.bootstrap import Interval, ResampledAP, paired_intervals
from engine.metrics.average_precision import AITOD, detection_metrics, get_protocol
from engine.metrics.protocols import EvaluationProtocol
from engine.metrics.records import ImageRecord

CLASSES = 3


def image(number: int, random: np.random.Generator, *, noise: float = 2.0) -> ImageRecord:
    """Scores are all different: equal ones would be ordered by the image."""
    objects, extra = int(random.integers(0, 9)), int(random.integers(0, 6))
    boxes = np.concatenate([random.uniform(0, 200, (objects, 2)), random.uniform(3, 40, (objects, 2))], axis=1)
    found = np.concatenate([boxes + random.normal(0, noise, boxes.shape), random.uniform(5, 60, (extra, 4))])
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    labels = random.integers(0, CLASSES, objects)
    return ImageRecord(
        image_id=number,
        gt_boxes=boxes,
        gt_labels=labels,
        gt_areas=boxes[:, 2] * boxes[:, 3],
        gt_crowd=random.random(objects) < 0.1,
        boxes=found,
        scores=random.random(len(found)),
        labels=np.concatenate([labels, random.integers(0, CLASSES, extra)]),
    )


def images(seed: int, *, noise: float = 2.0) -> list[ImageRecord]:
    random = np.random.default_rng(seed)
    return [image(i, random, noise=noise) for i in range(25)]


@pytest.mark.parametrize("protocol", [AITOD, get_protocol("coco"), get_protocol("visdrone")], ids=lambda p: p.name)
@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_repeated_images(protocol: EvaluationProtocol, seed: int) -> None:
    records = images(seed)
    evaluate = ResampledAP(records, CLASSES, protocol)
    weights = np.bincount(np.random.default_rng(seed).integers(25, size=25), minlength=25)
    repeated = [record for record, times in zip(records, weights, strict=True) for _ in range(times)]
    again = [replace(record, image_id=i) for i, record in enumerate(repeated)]
    for chosen, given in ((records, np.ones(25, int)), (again, weights)):
        expected = detection_metrics(chosen, CLASSES, protocol).summary()
        for name, value in zip(evaluate.names, evaluate(given), strict=True):
            assert (np.isnan(value) and expected[name] == -1) or abs(value - expected[name]) < 1e-12, name


def test_an_interval_excludes_zero_where_one_is_better() -> None:
    good, bad = (ResampledAP(images(3, noise=noise), CLASSES, AITOD) for noise in (0.5, 4.0))
    found = paired_intervals(bad, good, 25, resamples=200)
    assert found["mAP"].certain
    assert found["mAP"].low > 0
    assert found["mAP"].low <= found["mAP"].second - found["mAP"].first <= found["mAP"].high
    same = paired_intervals(good, good, 25, resamples=50)
    assert all((each.low, each.high, each.certain) == (0, 0, False) for each in same.values())
    assert paired_intervals(bad, good, 25, resamples=200) == found  # seeded


def test_nothing_found_and_nothing_to_find() -> None:
    records = images(1)
    none = np.zeros((0, 4))
    silent = [replace(r, boxes=none, scores=none[:, 0], labels=none[:, 0].astype(int)) for r in records]
    found = paired_intervals(
        ResampledAP(silent, CLASSES, AITOD), ResampledAP(records, CLASSES, AITOD), 25, resamples=20
    )
    assert found["mAP"].first == 0
    assert found["mAP"].second > 0
    empty = [replace(r, gt_boxes=none, gt_labels=none[:, 0].astype(int), gt_areas=none[:, 0], gt_crowd=none[:, 0] > 0)
             for r in records]  # fmt: skip
    assert paired_intervals(*[ResampledAP(empty, CLASSES, AITOD)] * 2, 25, resamples=5) == {}
    assert Interval(0.1, 0.2, -0.01, 0.2).certain is False
