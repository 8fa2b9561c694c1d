"""The metrics against the numbers of AI-TOD's own evaluation code, stored beside the detections they belong to.

D3Q_EVAL_ORACLE names another folder with gt.json.gz, dets.json.gz and expected.json.gz of the same format. Every
oracle has the section `full`; what else it has is tested, what it has not is skipped with its name.
"""

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.metrics.average_precision import (
    AITOD,
    DetectionMetrics,
    EvaluationProtocol,
    detection_metrics,
    records_from_coco,
)

FOLDER = Path(os.environ.get("D3Q_EVAL_ORACLE", Path(__file__).parents[1] / "data" / "eval"))
TOLERANCE = 1e-12
LITE_VARIANTS = ("lite", "lite_maxdets_1_100_1500", "lite_with_iou25", "lite_class_agnostic")


def read(name: str) -> Any:
    with gzip.open(FOLDER / name, "rt") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return read("expected.json.gz")


@pytest.fixture(scope="module")
def coco() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return read("gt.json.gz"), read("dets.json.gz")


@pytest.fixture(scope="module")
def protocol(expected) -> EvaluationProtocol:
    """AI-TOD's, with the limits and areas that the file states, if any."""
    stated = expected.get("protocol")
    if stated is None:
        return AITOD
    areas = {name: (float(low), float(high)) for name, (low, high) in stated["areas"].items()}
    return replace(AITOD, areas=areas, max_detections=tuple(stated["maxDets"]))


@pytest.fixture(scope="module")
def full(coco, protocol) -> DetectionMetrics:
    records, category_ids = records_from_coco(*coco)
    return detection_metrics(records, len(category_ids), protocol)


def assert_same_table(measured: dict[str, float], wanted: dict[str, Any]) -> None:
    wanted = {name: value for name, value in wanted.items() if name != "note"}
    assert list(measured) == list(wanted)
    for name, value in wanted.items():
        value = np.nan if value is None else value
        assert measured[name] == pytest.approx(value, rel=0, abs=TOLERANCE, nan_ok=True), name


def test_stated_protocol_is_the_shipped_one(expected, protocol):
    if "protocol" not in expected:
        pytest.skip("this oracle states no protocol")
    assert expected["protocol"]["iouThrs"] == "linspace(.5,.95,10)"
    assert expected["protocol"]["recThrs"] == "linspace(0,1,101)"
    assert protocol == AITOD


def test_full_summary(full, expected):
    assert len(full.summary()) == 19
    assert_same_table(full.summary(), expected["full"]["stats"])


def test_full_classwise(full, expected, coco):
    rows = expected["full"]["classwise"]
    assert [row["id"] for row in rows] == sorted(category["id"] for category in coco[0]["categories"])
    found = full.recall[:, :, 0, -1].mean(axis=0)
    measured = {
        "AP": full.classwise_ap(),
        "AP50": full.classwise_ap(0.5),
        f"AR{full.protocol.max_detections[-1]}": found,
        "oLRP": full.lrp.error[:, 0, -1],
        "oLRP_thr": full.lrp.score[:, 0, -1],
    }
    for name, values in measured.items():
        values = np.where(values == -1, np.nan, values)
        wanted = np.array([row[name] for row in rows], np.float64)
        wanted = np.where(wanted == -1, np.nan, wanted)
        np.testing.assert_allclose(values, wanted, rtol=0, atol=TOLERANCE, err_msg=name)


def test_full_tables(full, expected):
    for measured, name in ((full.precision.mean(axis=1), "ap_TKAM"), (full.recall, "recall_TKAM")):
        wanted = np.array(expected["full"][name], np.float64)
        assert measured.shape == wanted.shape
        np.testing.assert_allclose(measured, wanted, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("section", LITE_VARIANTS)
def test_variants_on_the_lite_images(section, expected, coco, protocol):
    if section not in expected:
        pytest.skip(f"this oracle has no section {section}")
    if limits := re.search(r"maxdets_([\d_]+)$", section):
        protocol = replace(protocol, max_detections=tuple(map(int, limits[1].split("_"))))
    if section == "lite_with_iou25":
        protocol = replace(protocol, iou_thresholds=(0.25, *protocol.iou_thresholds))
    records, category_ids = records_from_coco(*coco, image_ids=expected["lite_image_ids"])
    class_agnostic = section == "lite_class_agnostic"
    metrics = detection_metrics(records, len(category_ids), protocol, class_agnostic=class_agnostic)
    assert_same_table(metrics.summary(), expected[section])
