"""The closing report: numbers, places without a measurement, width, JSON."""

import dataclasses
import json
import math

import numpy as np
import pytest

from engine.evaluation.report import WIDTH, Report, format_report, report_record
from engine.metrics.average_precision import ImageRecord, detection_metrics, get_protocol
from engine.metrics.counting import count_metrics

NAMES = ["vehicle", "a-class-with-a-very-long-name-that-would-stretch-the-table-beyond-its-width", "wind-mill"]


def record(image_id: int, gt_boxes: list[list[float]], boxes: list[list[float]], label: int) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        gt_boxes=gt_boxes,
        gt_labels=[label] * len(gt_boxes),
        gt_areas=[w * h for _, _, w, h in gt_boxes],
        gt_crowd=[False] * len(gt_boxes),
        boxes=np.reshape(boxes, (-1, 4)),
        scores=np.linspace(0.9, 0.5, len(boxes)),
        labels=[label] * len(boxes),
    )


def report(
    protocol: str = "aitod", estimates: list[float] | None = None, expected: list[float] | None = None
) -> Report:
    """One perfect class of 2 very tiny objects, one never detected class of 1 tiny object, one without objects."""
    tiny = [[10.0, 10.0, 6.0, 6.0], [50.0, 50.0, 6.0, 6.0]]
    records = [record(1, tiny, tiny, 0), record(2, [[5.0, 5.0, 12.0, 12.0]], [], 1)]
    return Report(
        metrics=detection_metrics(records, len(NAMES), get_protocol(protocol)),
        class_names=NAMES,
        objects_per_class=np.array([2, 1, 0]),
        counts=count_metrics(estimates, [300, 300], [2, 1], expected),
        seconds_per_image=0.25,
        peak_memory_mb=812.4,
    )


def line(text: str, start: str) -> list[str]:
    return next(row for row in text.splitlines() if row.startswith(start)).split()


def test_the_text_states_the_measurements():
    text = format_report(report(estimates=[1.0, 0.0]))
    assert text.splitlines()[0] == "Evaluation (aitod, 1500 detections per image and class): 2 images, 3 objects"
    assert line(text, " " * 20) == ["AP", "AP50", "AP75", "AP_vt", "AP_t", "AP_s", "AP_m"]
    assert line(text, "average precision")[3:] == ["50.0", "50.0", "50.0", "100.0", "0.0", "-", "-"]
    assert line(text, "average recall")[3:] == ["50.0"] * 3 + ["100.0", "0.0", "-", "-"]
    assert line(text, "LRP error")[3:] == ["50.0", "0.0", "0.0", "50.0"]
    assert line(text, "vehicle") == ["vehicle", "2", "100.0", "100.0"]
    assert line(text, "a-class")[1:] == ["1", "0.0", "0.0"]
    assert line(text, "wind-mill") == ["wind-mill", "0", "-", "-"]
    assert text.splitlines()[-1] == "0.2500 s per image (4.0 images/s), peak memory 812 MB"


def test_a_count_bias_of_minus_one_is_a_number():
    text = format_report(report(estimates=[1.0, 0.0], expected=[2.5, 0.5]))
    assert line(text, "all ") == ["all", "2", "1.00", "-1.00", "0.50", "+0.00", "100.0", "300.0"]
    assert line(text, "1-10") == ["1-10", "2", "1.00", "-1.00", "0.50", "+0.00", "100.0", "300.0"]
    assert line(text, ">500") == [">500", "0", "-", "-", "-", "-", "-", "-"]
    assert report_record(report(estimates=[1.0, 0.0]))["counts"]["count_bias"] == -1.0


def test_without_estimates_coverage_and_queries_remain():
    assert line(format_report(report()), "all ") == ["all", "2", "-", "-", "-", "-", "100.0", "300.0"]


def test_published_scores_have_the_corrected_result_beside_them():
    """Two right detections with scores of 0.9 and 0.5: errors of 0.1 and 0.5."""
    published, corrected = report(), report()
    text = format_report(dataclasses.replace(published, corrected=corrected.metrics))
    assert "calibration error of the published scores 0.300; with corrected scores 0.300, AP 50.0, AP50 50.0" in text
    assert "calibration error of the published scores 0.300\n" in format_report(published)
    assert "the corrected scores 0.300\n" in format_report(dataclasses.replace(published, scores="corrected"))
    found = report_record(dataclasses.replace(published, corrected=corrected.metrics))
    assert found["corrected"]["detection"] == found["detection"]
    assert found["calibration"]["error"] == pytest.approx(0.3)
    detections = found["calibration"]["detections"]
    assert [i for i, number in enumerate(detections) if number] == [7, 13]  # of fifteen bins: 0.5 and 0.9


def test_coco_has_no_lrp_and_its_own_sizes():
    text = format_report(report("coco"))
    assert "LRP" not in text
    assert line(text, " " * 20) == ["AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l"]


@pytest.mark.parametrize("protocol", ["aitod", "coco"])
def test_tables_are_aligned_and_keep_within_the_width(protocol):
    text = format_report(report(protocol, estimates=[1.0, 123456.0]))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text == "\n".join(row.rstrip() for row in text.splitlines())
    for table in text.split("\n\n")[1:-2]:
        rows = [row for row in table.splitlines() if not row.startswith(("Count by", "Coverage:"))]
        assert len({len(row) for row in rows}) == 1, table


def test_the_record_is_valid_json_in_shares():
    found = report_record(report())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["detection"]["mAP"] == pytest.approx(0.5)
    assert found["detection"]["mAP_m"] is None
    assert found["classes"][0] == {"name": "vehicle", "objects": 2.0, "AP": pytest.approx(1), "AP50": pytest.approx(1)}
    assert found["classes"][2]["AP"] is None
    assert found["classes"][1]["name"] == NAMES[1], "names are shortened in the text only"
    assert found["counts"]["count_MAE"] is None
    assert (found["seconds_per_image"], found["peak_memory_mb"]) == (0.25, 812.4)


def test_unknown_time_and_no_images():
    nothing = Report(
        metrics=detection_metrics([], 1, get_protocol("aitod")),
        class_names=["ship"],
        objects_per_class=[0],
        counts=count_metrics([], [], []),
        seconds_per_image=0.0,
        peak_memory_mb=math.nan,
    )
    text = format_report(nothing)
    assert line(text, "average precision")[3:] == ["-"] * 7
    assert text.splitlines()[-1] == "0.0000 s per image, peak memory - MB"
    assert report_record(nothing)["peak_memory_mb"] is None


def test_names_and_objects_are_one_for_each_class():
    with pytest.raises(ValueError, match="class_names has 2 entries; the metrics have 3 classes"):
        dataclasses.replace(report(), class_names=["a", "b"])
