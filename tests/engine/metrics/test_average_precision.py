"""Detection metrics: small cases worked out by hand, and whole tables against pycocotools."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from engine.metrics.average_precision import (
    AITOD,
    COCO,
    DetectionMetrics,
    EvaluationProtocol,
    ImageRecord,
    detection_metrics,
    get_protocol,
    records_from_coco,
)

PLAIN = EvaluationProtocol("plain", {"all": (0, 1e10)}, (100,), (0.5, 0.75), True)


def record(image_id=1, gt=(), dets=(), *, gt_labels=None, labels=None, areas=None, crowd=None) -> ImageRecord:
    """gt: boxes; dets: (box, score). Labels default to 0, areas to w*h, crowd to none."""
    gt_boxes = np.array(gt, np.float64).reshape(-1, 4)
    return ImageRecord(
        image_id=image_id,
        gt_boxes=gt_boxes,
        gt_labels=np.array([0] * len(gt) if gt_labels is None else gt_labels, np.int64),
        gt_areas=gt_boxes[:, 2] * gt_boxes[:, 3] if areas is None else np.array(areas),
        gt_crowd=np.array([False] * len(gt) if crowd is None else crowd, np.bool_),
        boxes=np.array([box for box, _ in dets], np.float64).reshape(-1, 4),
        scores=np.array([score for _, score in dets], np.float64),
        labels=np.array([0] * len(dets) if labels is None else labels, np.int64),
    )


def summary(*records: ImageRecord, protocol: EvaluationProtocol = PLAIN, num_classes: int = 1) -> dict[str, float]:
    return detection_metrics(records, num_classes, protocol).summary()


BOX, FAR, FARTHER = (10, 10, 10, 10), (100, 100, 10, 10), (200, 200, 10, 10)


# ---- average precision and recall ----


def test_perfect_detections_score_one_and_lrp_zero():
    table = summary(record(gt=[BOX, FAR], dets=[(BOX, 0.9), (FAR, 0.8)]))
    assert table["mAP"] == pytest.approx(1, abs=1e-12)
    assert table["AR@100"] == 1
    assert [table[f"oLRP{part}"] for part in ("", "_Localisation", "_false_positive", "_false_negative")] == [0] * 4


def test_a_duplicate_is_a_false_positive():
    duplicate_last = summary(record(gt=[BOX, FAR], dets=[(BOX, 0.9), (FAR, 0.8), (BOX, 0.7)]))
    assert duplicate_last["mAP"] == pytest.approx(1, abs=1e-12)
    # Precision is 1 up to recall 1/2 (51 of the 101 samples) and 2/3 beyond.
    duplicate_first = summary(record(gt=[BOX, FAR], dets=[(BOX, 0.9), (BOX, 0.8), (FAR, 0.7)]))
    assert duplicate_first["mAP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_iou_thresholds_are_inclusive():
    half = (10, 10, 10, 5)  # IoU 1/2 exactly: a hit at .5 alone
    metrics = detection_metrics([record(gt=[BOX], dets=[(half, 0.9)])], 1, PLAIN)
    assert metrics.recall[:, 0, 0, 0].tolist() == [1] + [0] * 9
    assert metrics.classwise_ap(0.5).item() == pytest.approx(1, abs=1e-12)
    assert metrics.classwise_ap().item() == pytest.approx(0.1, abs=1e-12)


def test_optimal_lrp_of_a_worked_example():
    # Hit of IoU .8, then a false positive; two objects. Prefix 1: (.2/.5 + 0 + 1) / 2 = .7; prefix 2: 2.4 / 3 = .8.
    metrics = detection_metrics([record(gt=[BOX, FAR], dets=[((10, 10, 10, 8), 0.9), (FARTHER, 0.6)])], 1, PLAIN)
    parts = [metrics.lrp.error, metrics.lrp.localisation, metrics.lrp.false_positive, metrics.lrp.false_negative]
    assert [part.item() for part in parts] == pytest.approx([0.7, 0.2, 0, 0.5], abs=1e-12)
    assert metrics.lrp.score.item() == 0.9


def test_a_better_match_later_cannot_reclaim_a_taken_object():
    # The first detection takes the one object at IoU .8, so the exact one that follows is false at thresholds <= .8.
    metrics = detection_metrics([record(gt=[BOX], dets=[((10, 10, 10, 8), 0.9), (BOX, 0.8)])], 1, PLAIN)
    ap = metrics.precision[:, :, 0, 0, 0].mean(axis=1)
    np.testing.assert_allclose(ap, [1] * 7 + [0.5] * 3, rtol=0, atol=1e-12)


def test_results_are_accumulated_in_image_order_whatever_the_order_of_records():
    # Equal scores: the image of lower id ranks first, here the one with the false positive.
    false = record(image_id=1, dets=[(BOX, 0.5)])
    true = record(image_id=2, gt=[BOX], dets=[(BOX, 0.5)])
    assert summary(false, true)["mAP"] == summary(true, false)["mAP"] == pytest.approx(0.5, abs=1e-12)


def test_equal_scores_keep_file_order():
    assert summary(record(gt=[BOX], dets=[(FAR, 0.5), (BOX, 0.5)]))["mAP"] == pytest.approx(0.5, abs=1e-12)
    assert summary(record(gt=[BOX], dets=[(BOX, 0.5), (FAR, 0.5)]))["mAP"] == pytest.approx(1, abs=1e-12)


def test_recall_zero_is_reached_at_the_top_score_even_by_a_false_positive():
    metrics = detection_metrics([record(gt=[BOX], dets=[(FAR, 0.9), (BOX, 0.4)])], 1, PLAIN)
    assert metrics.scores[0, [0, 1, 100], 0, 0, 0].tolist() == [0.9, 0.4, 0.4]


def test_among_equal_ious_the_last_object_wins():
    # Two coincident objects of different annotated size: the detection takes the last, whichever bucket that is in.
    detections = [(BOX, 0.9)]
    small_last = summary(record(gt=[BOX, BOX], areas=[2000, 500], dets=detections), protocol=AITOD)
    small_first = summary(record(gt=[BOX, BOX], areas=[500, 2000], dets=detections), protocol=AITOD)
    assert (small_last["mAP_s"], small_last["mAP_m"]) == pytest.approx((1, 1))  # a real one beats an ignored one
    assert small_last == small_first
    # Visible where both count: the second detection overlaps the first object only, if that is still free.
    shared, first_only = (10, 10, 10, 10), (10, 10, 10, 5)
    objects = [(10, 10, 10, 6), (10, 14, 10, 6)]  # IoU .6 each with `shared`
    dets = [(shared, 0.9), (first_only, 0.8)]
    assert detection_metrics([record(gt=objects, dets=dets)], 1, PLAIN).recall[0].item() == 1
    assert detection_metrics([record(gt=objects[::-1], dets=dets)], 1, PLAIN).recall[0].item() == 0.5


def test_classes_do_not_match_each_other_unless_class_agnostic():
    confused = record(gt=[BOX], dets=[(BOX, 0.9)], gt_labels=[0], labels=[1])
    assert detection_metrics([confused], 2, PLAIN).summary()["mAP"] == 0
    agnostic = detection_metrics([confused], 2, PLAIN, class_agnostic=True)
    assert agnostic.summary()["mAP"] == pytest.approx(1, abs=1e-12)
    assert agnostic.precision.shape[2] == 1


# ---- crowds and areas ----


def test_detections_in_a_crowd_are_ignored_any_number_of_times():
    region = (100, 100, 50, 50)
    in_region = [((110 + i, 110, 10, 10), 0.95) for i in range(5)]
    table = summary(record(gt=[BOX, region], crowd=[False, True], dets=[*in_region, (BOX, 0.5)]))
    assert table["mAP"] == pytest.approx(1, abs=1e-12)
    counted = summary(record(gt=[BOX, region], crowd=[False, False], dets=[*in_region, (BOX, 0.5)]))
    assert counted["mAP"] < 0.2


def test_a_real_object_beats_a_crowd_of_higher_overlap():
    region = (0, 0, 100, 100)  # IoU with a crowd is the detection's share inside: 1
    table = summary(record(gt=[BOX, region], crowd=[False, True], dets=[((10, 10, 10, 8), 0.9)]))
    assert table["oLRP_false_negative"] == 0


def test_area_bounds_are_inclusive_on_both_sides():
    square = (10, 10, 8, 8)  # 64 px^2: verytiny and tiny
    metrics = detection_metrics([record(gt=[square], dets=[(square, 0.9)])], 1, AITOD)
    assert metrics.recall[0, 0, :, -1].tolist() == [1, 1, 1, -1, -1]
    # An unmatched detection of 64 px^2 is false in both buckets, too, and ignored in all other buckets.
    false_first = record(gt=[square, (100, 100, 40, 40)], dets=[((200, 200, 8, 8), 0.9), ((10, 10, 8, 8), 0.8)])
    precision = detection_metrics([false_first], 1, AITOD).precision[0, 0, 0, :, -1]
    np.testing.assert_allclose(precision, [0.5, 0.5, 0.5, -1, 0], rtol=0, atol=1e-12)


def test_object_size_is_the_annotated_area_not_that_of_the_box():
    metrics = detection_metrics([record(gt=[BOX], areas=[50], dets=[(BOX, 0.9)])], 1, AITOD)
    assert metrics.recall[0, 0, :, -1].tolist() == [1, 1, -1, -1, -1]


# ---- limits ----


def test_the_limit_is_per_image_and_class():
    protocol = replace(PLAIN, max_detections=(1, 2))
    records = [
        record(i, gt=[BOX, FAR, BOX, FAR], gt_labels=[0, 0, 1, 1], labels=[1, 0, 0, 1],
               dets=[(BOX, 0.9), (BOX, 0.8), (FAR, 0.7), (FAR, 0.6)])
        for i in (1, 2)
    ]  # fmt: skip
    table = detection_metrics(records, 2, protocol).summary()
    assert table["AR@1"] == 0.5
    assert table["AR@2"] == 1
    one = detection_metrics(records, 2, replace(PLAIN, max_detections=(1,)))
    assert one.recall[0, :, 0, 0].tolist() == [0.5, 0.5]


def test_the_limit_keeps_the_best_scores():
    dets = [(FAR, 0.1), (FARTHER, 0.2), (BOX, 0.3)]
    table = summary(record(gt=[BOX], dets=dets), protocol=replace(PLAIN, max_detections=(1,)))
    assert table["mAP"] == pytest.approx(1, abs=1e-12)


# ---- nothing to count ----


@pytest.mark.parametrize("protocol", [AITOD, COCO], ids=lambda p: p.name)
@pytest.mark.parametrize("records", [[], [record()], [record(dets=[(BOX, 0.9)])]], ids=["none", "empty", "no-gt"])
def test_without_objects_every_number_is_minus_one(protocol, records):
    metrics = detection_metrics(records, 3, protocol)
    assert set(metrics.summary().values()) == {-1.0}
    assert np.isnan(metrics.classwise_ap()).all()


def test_without_detections_ap_is_zero_and_lrp_one():
    table = summary(record(gt=[BOX]), protocol=AITOD)
    assert (table["mAP"], table["mAP_50"], table["AR@1500"], table["mAP_25"]) == (0, 0, 0, -1)
    assert (table["oLRP"], table["oLRP_false_negative"]) == (1, 1)
    assert (table["oLRP_Localisation"], table["oLRP_false_positive"]) == (-1, -1)
    assert (table["mAP_t"], table["mAP_m"]) == (0, -1)


def test_classes_without_objects_drop_out_of_the_mean():
    metrics = detection_metrics([record(gt=[BOX], dets=[(BOX, 0.9), (FAR, 0.8)], labels=[0, 2])], 3, PLAIN)
    assert metrics.summary()["mAP"] == pytest.approx(1, abs=1e-12)
    assert np.isnan(metrics.classwise_ap()).tolist() == [False, True, True]


# ---- protocols ----


def test_summary_names_and_order():
    assert " ".join(summary(protocol=COCO)) == (
        "mAP mAP_50 mAP_75 mAP_s mAP_m mAP_l AR@1 AR@10 AR@100 AR_s@100 AR_m@100 AR_l@100"
    )
    assert " ".join(summary(protocol=AITOD)) == (
        "mAP mAP_25 mAP_50 mAP_75 mAP_vt mAP_t mAP_s mAP_m AR@100 AR@300 AR@1500 "
        "AR_vt@1500 AR_t@1500 AR_s@1500 AR_m@1500 "
        "oLRP oLRP_Localisation oLRP_false_positive oLRP_false_negative"
    )


@pytest.mark.parametrize(
    ("limit", "wanted"), [(None, (100, 300, 1500)), (3000, (100, 300, 3000)), (300, (100, 300)), (50, (50,))]
)
def test_max_detections_replaces_the_last_limit(limit, wanted):
    assert get_protocol("aitod", limit).max_detections == wanted


def test_protocol_errors_name_the_value():
    with pytest.raises(ValueError, match=r"'voc'.*aitod, coco"):
        get_protocol("voc")
    with pytest.raises(ValueError, match=r"\(0,\) must be at least 1"):
        get_protocol("coco", 0)
    with pytest.raises(ValueError, match=r"iou_thresholds \(0.5, 0.4\) must ascend"):
        replace(COCO, iou_thresholds=(0.5, 0.4))
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(COCO, iou_thresholds=(0.5, 1.0))


# ---- errors ----


def test_an_image_id_that_occurs_twice_is_an_error():
    with pytest.raises(ValueError, match="image id 7 occurs twice"):
        detection_metrics([record(7), record(8), record(7)], 1, PLAIN)


@pytest.mark.parametrize("field", ["gt_labels", "labels"])
@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_classes_are_an_error(field, label):
    bad = replace(record(7, gt=[BOX], dets=[(BOX, 0.9)]), **{field: np.array([label])})
    with pytest.raises(ValueError, match=f"image 7: {field} range from {label}"):
        detection_metrics([bad], 2, PLAIN)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scores", [np.nan]),
        ("boxes", [[0, 0, np.inf, 1]]),
        ("gt_boxes", [[0, 0, np.nan, 1]]),
        ("gt_areas", [np.inf]),
        ("scores", [0.9, 0.8]),
        ("labels", [0.0]),
        ("boxes", [0, 0, 1, 1]),
        ("gt_crowd", []),
    ],
)
def test_malformed_records_name_the_image_and_the_field(field, value):
    with pytest.raises(ValueError, match=f"image 7: {field} "):
        replace(record(7, gt=[BOX], dets=[(BOX, 0.9)]), **{field: np.array(value)})


# ---- the COCO adapter ----


def test_coco_defaults_and_category_order():
    gt = {
        "images": [{"id": 5}, {"id": 3}],
        "categories": [{"id": 9}, {"id": 4}],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 9, "bbox": [0, 0, 4, 5]},
            {"id": 1, "image_id": 5, "category_id": 77, "bbox": [0, 0, 4, 5]},
        ],
    }
    dets = [{"image_id": 5, "category_id": 9, "bbox": [0, 0, 4, 5], "score": 0.5}]
    records, category_ids = records_from_coco(gt, dets)
    assert category_ids == [4, 9]
    assert [r.image_id for r in records] == [3, 5]
    assert (records[1].gt_labels, records[1].gt_areas, records[1].gt_crowd) == ([1], [20], [False])
    assert detection_metrics(records, 2, PLAIN).summary()["mAP"] == pytest.approx(1, abs=1e-12)  # in spite of its id 0
    assert [r.image_id for r in records_from_coco(gt, dets, image_ids=[3])[0]] == [3]
    with pytest.raises(ValueError, match="detection 0 has category_id 1;"):
        records_from_coco(gt, [{**dets[0], "category_id": 1}])
    with pytest.raises(ValueError, match="detection 0 has image_id 1,"):
        records_from_coco(gt, [{**dets[0], "image_id": 1}])
    with pytest.raises(ValueError, match="image id 6 is not among"):
        records_from_coco(gt, dets, image_ids=[6])


# ---- pycocotools ----


def random_scenes(seed: int, *, coarse: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Clusters, so that matches compete; sizes up to large. Coarse: scores, IoUs and areas tie often."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i)} for i in rng.permutation(40)[:12] + 1]
    categories = [{"id": c} for c in (7, 2, 11, 5)]  # the last has no objects
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []

    def entry(image_id: int, category_id: int, box: np.ndarray) -> dict[str, Any]:
        return {"image_id": image_id, "category_id": category_id, "bbox": (np.round(box) if coarse else box).tolist()}

    for image in images[1:]:
        for _ in range(rng.integers(0, 8)):
            corner, size = rng.integers(0, 120, 2), rng.choice([4, 8, 12, 16, 32, 40, 96, 120])
            for _ in range(rng.integers(1, 6)):
                box = np.array([*corner + rng.integers(-3, 4, 2), size, size]).astype(float)
                if not coarse:
                    box *= rng.uniform(0.9, 1.1, 4)
                common = entry(image["id"], int(rng.choice([7, 2, 11])), box)
                area = float(rng.choice([1.0, 0.6]) * size * size)
                crowd = int(rng.random() < 0.1)
                annotations.append({**common, "id": len(annotations) + 1, "area": area, "iscrowd": crowd})
                for _ in range(rng.integers(0, 5)):
                    moved = box + rng.integers(-1, 2, 4) * size / 8
                    category = int(rng.choice([common["category_id"], 5, 2]))
                    score = float(rng.integers(1, 10) / 10 if coarse else rng.random())
                    detections.append({**entry(image["id"], category, moved), "score": score})
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def coco_eval(
    gt: dict[str, Any], detections: list[dict[str, Any]], protocol: EvaluationProtocol, use_cats: bool
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        index = CocoIndex()
        index.dataset = gt
        index.createIndex()
        evaluator = COCOeval(index, index.loadRes([dict(d) for d in detections]), "bbox")
        evaluator.params.areaRng = [list(bounds) for bounds in protocol.areas.values()]
        evaluator.params.areaRngLbl = list(protocol.areas)
        evaluator.params.maxDets = list(protocol.max_detections)
        evaluator.params.useCats = int(use_cats)
        evaluator.evaluate()
        evaluator.accumulate()
        if protocol is COCO:  # summarize() knows no other
            evaluator.summarize()
    return evaluator


def measured(
    gt: dict[str, Any], dets: list[dict[str, Any]], protocol: EvaluationProtocol, **kwargs: bool
) -> DetectionMetrics:
    records, category_ids = records_from_coco(gt, dets)
    return detection_metrics(records, len(category_ids), protocol, **kwargs)


@pytest.mark.parametrize("seed", range(4))
def test_coco_summary_equals_pycocotools(seed):
    gt, detections = random_scenes(seed)
    table = measured(gt, detections, COCO).summary()
    np.testing.assert_allclose(list(table.values()), coco_eval(gt, detections, COCO, True).stats, rtol=0, atol=1e-12)
    assert 0.02 < table["mAP"] < 0.98


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("protocol", [COCO, AITOD, replace(AITOD, max_detections=(1, 3, 6))])
@pytest.mark.parametrize("seed", range(10, 14))
def test_all_tables_equal_pycocotools(seed, protocol, class_agnostic):
    gt, detections = random_scenes(seed)
    ours = measured(gt, detections, protocol, class_agnostic=class_agnostic)
    theirs = coco_eval(gt, detections, protocol, not class_agnostic).eval
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(getattr(ours, name), theirs[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("protocol", [COCO, AITOD], ids=lambda p: p.name)
def test_many_random_sets_equal_pycocotools(protocol, coarse):
    for seed in range(1000, 1150):
        gt, detections = random_scenes(seed, coarse=coarse)
        ours = measured(gt, detections, protocol)
        theirs = coco_eval(gt, detections, protocol, True).eval
        for name in ("precision", "recall", "scores"):
            message = f"{name}, seed {seed}"
            np.testing.assert_allclose(getattr(ours, name), theirs[name], rtol=0, atol=1e-12, err_msg=message)
