"""The report of an evaluation: a text for people, a record for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.evaluation.fingerprint import fingerprint
from engine.metrics.average_precision import DetectionMetrics
from engine.metrics.counting import COUNT_BINS
from engine.wording import counted

WIDTH = 100
"""Columns that a report keeps within."""
_LONGEST_NAME = 40
_COUNT_KEYS = ("images", "count_MAE", "count_bias", "expected_MAE", "expected_bias", "coverage", "mean_queries")


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Contents of a report. Raises ValueError where names or objects are not one for each class."""

    metrics: DetectionMetrics
    class_names: Sequence[str]
    """(K,)"""
    objects_per_class: Sequence[int]
    """(K,) annotated objects, without crowd regions."""
    counts: Mapping[str, float]
    """From `count_metrics`."""
    seconds_per_image: float
    peak_memory_mb: float
    scores: str = "published"
    """Which ones `metrics` is of: published or corrected."""
    corrected: DetectionMetrics | None = None
    """With corrected scores, where `metrics` is of published ones."""
    saturated: int = 0
    """Images that reach the detection limit, which may hide more."""
    annotations: str = ""
    """Digest, from `annotations_digest`."""

    def __post_init__(self) -> None:
        num_classes = self.metrics.recall.shape[1]
        for name in ("class_names", "objects_per_class"):
            if len(getattr(self, name)) != num_classes:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries; the metrics have {num_classes} classes"
                )


def format_report(report: Report) -> str:
    """Format the report as aligned tables of at most 100 columns; `-` where there is nothing to measure.

    AP, AR, LRP and coverage are in percent, counts in objects, time in seconds.
    """
    protocol = report.metrics.protocol
    limit = protocol.max_detections[-1]
    per = "image" if protocol.limits_all_classes else "image and class"
    sections = [
        f"Evaluation ({protocol.name}, {limit} detections per {per}): "
        f"{report.counts['images']:.0f} images, {sum(report.objects_per_class)} objects{_saturated(report)}",
        _summary_tables(report),
        _class_table(report),
        _count_table(report.counts),
        _calibration_line(report),
        _cost_line(report),
    ]
    return "\n\n".join(sections)


def report_record(report: Report) -> dict[str, Any]:
    """The same numbers as JSON types, in their own units: shares in [0, 1], not percent; None for no measurement."""
    mean_ap, ap_50 = _class_precisions(report)
    rows = zip(report.class_names, report.objects_per_class, mean_ap, ap_50, strict=True)
    return {
        "protocol": report.metrics.protocol.name,
        "detection": {name: _or_none(measured(value)) for name, value in report.metrics.summary().items()},
        "classes": [
            {"name": name, "objects": float(objects), "AP": _or_none(ap), "AP50": _or_none(ap50)}
            for name, objects, ap, ap50 in rows
        ],
        "counts": {name: _or_none(value) for name, value in report.counts.items()},
        "scores": report.scores,
        "calibration": _calibration_record(report.metrics),
        "corrected": None if report.corrected is None else _corrected_record(report.corrected),
        "saturated_images": report.saturated,
        "fingerprint": fingerprint(
            report.metrics.protocol, report.class_names, report.annotations, scores=report.scores
        ),
        "seconds_per_image": _or_none(report.seconds_per_image),
        "peak_memory_mb": _or_none(report.peak_memory_mb),
    }


def _saturated(report: Report) -> str:
    return f"; {counted(report.saturated, 'image')} at the limit" if report.saturated else ""


def _summary_tables(report: Report) -> str:
    """AP, AR and oLRP, a table of one row each."""
    protocol = report.metrics.protocol
    unevaluated = {
        f"mAP_{round(100 * iou)}"
        for iou in protocol.reported_ious
        if not any(math.isclose(iou, threshold) for threshold in protocol.iou_thresholds)
    }
    summary = {name: measured(value) for name, value in report.metrics.summary().items() if name not in unevaluated}
    tables = []
    for title, prefix in (("average precision, %", "mAP"), ("average recall, %", "AR"), ("LRP error, %", "oLRP")):
        chosen = {
            column_heading(name): format_percent(value) for name, value in summary.items() if name.startswith(prefix)
        }
        if chosen:
            tables.append(format_table(["", *chosen], [[title, *chosen.values()]]))
    return "\n\n".join(tables)


def column_heading(name: str) -> str:
    """Heading of a summary entry: mAP_50 -> AP50, mAP_vt -> AP_vt, oLRP_false_positive -> false positive."""
    if name.startswith("mAP_") and name.removeprefix("mAP_").isdigit():
        return "AP" + name.removeprefix("mAP_")
    if name.startswith("oLRP_"):
        return name.removeprefix("oLRP_").replace("_", " ").lower()
    return name.removeprefix("m")


def _class_table(report: Report) -> str:
    mean_ap, ap_50 = _class_precisions(report)
    rows = [
        [_shortened(name), str(int(objects)), format_percent(ap), format_percent(ap50)]
        for name, objects, ap, ap50 in zip(report.class_names, report.objects_per_class, mean_ap, ap_50, strict=True)
    ]
    return format_table(["class", "objects", "AP, %", "AP50, %"], rows)


def _count_table(counts: Mapping[str, float]) -> str:
    """All images, then the images of each count bin."""
    rows = []
    for name, suffix in (("all", ""), *((name, f"_{name}") for name in COUNT_BINS)):
        images, *errors, coverage, queries = (counts[key + suffix] for key in _COUNT_KEYS)
        cells = [format_number(error, pattern) for error, pattern in zip(errors, (".2f", "+.2f") * 2, strict=True)]
        rows.append([name, f"{images:.0f}", *cells, format_percent(coverage), format_number(queries, ".1f")])
    heading = ["objects in image", "images", "density MAE", "bias", "expected MAE", "bias", "coverage, %", "queries"]
    legend = (
        "Count by density: sum of the map. Expected count: sum of the corrected scores.\n"
        "Coverage: images with at least as many queries as objects."
    )
    return f"{format_table(heading, rows)}\n{legend}"


def _calibration_line(report: Report) -> str:
    """Calibration error, and what corrected scores would give."""
    line = f"calibration error of the {report.scores} scores {format_number(report.metrics.reliability.error, '.3f')}"
    if report.corrected is None:
        return line
    summary = report.corrected.summary()
    ap, ap_50 = (format_percent(measured(summary[name])) for name in ("mAP", "mAP_50"))
    error = format_number(report.corrected.reliability.error, ".3f")
    return f"{line}; with corrected scores {error}, AP {ap}, AP50 {ap_50}"


def _calibration_record(metrics: DetectionMetrics) -> dict[str, Any]:
    diagram = metrics.reliability
    return {
        "error": _or_none(diagram.error),
        "detections": diagram.detections.tolist(),
        "mean_score": [_or_none(value) for value in diagram.mean_score.tolist()],
        "precision": [_or_none(value) for value in diagram.precision.tolist()],
    }


def _corrected_record(metrics: DetectionMetrics) -> dict[str, Any]:
    detection = {name: _or_none(measured(value)) for name, value in metrics.summary().items()}
    return {"detection": detection, "calibration": _calibration_record(metrics)}


def _cost_line(report: Report) -> str:
    seconds = report.seconds_per_image
    pace = f" ({1 / seconds:.1f} images/s)" if math.isfinite(seconds) and seconds > 0 else ""
    memory = format_number(report.peak_memory_mb, ".0f")
    return f"{format_number(seconds, '.4f')} s per image{pace}, peak memory {memory} MB"


def _class_precisions(report: Report) -> tuple[list[float], list[float]]:
    """AP and AP50 per class; NaN for classes without objects, and where IoU 0.5 is not evaluated."""
    has_half = any(math.isclose(iou, 0.5) for iou in report.metrics.protocol.iou_thresholds)
    mean_ap = report.metrics.classwise_ap().tolist()
    return mean_ap, report.metrics.classwise_ap(0.5).tolist() if has_half else [math.nan] * len(mean_ap)


def format_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = []
    for row in (heading, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def measured(value: float) -> float:
    """-1, with which detection metrics mark an empty mean, as NaN (a count bias of -1 is a number)."""
    return math.nan if value == -1 else value


def format_number(value: float, pattern: str) -> str:
    return format(value, pattern) if math.isfinite(value) else "-"


def format_percent(value: float) -> str:
    return format_number(100 * value, ".1f")


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
