"""Accuracy and cost of a query budget per range of object counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets.structures import GroundTruth
from engine.evaluation.evaluate import GatheredPredictions, image_records, object_counts
from engine.evaluation.report import format_number, format_percent, format_table, measured
from engine.metrics.average_precision import EvaluationProtocol, detection_metrics
from engine.metrics.counting import COUNT_BINS, count_metrics


@dataclass(frozen=True)
class BinResult:
    """The images of one count bin, evaluated as a data set of their own; NaN where there is nothing to measure."""

    images: int
    average_precision: float
    """The protocol's mAP"""
    average_precision_50: float
    """At an IoU of 0.5"""
    very_tiny_precision: float
    """The protocol's mAP of very tiny objects, where it has one"""
    average_recall: float
    """At the protocol's largest number of detections"""
    mean_queries: float
    coverage: float
    """Share of the images with at least as many queries as objects"""
    count_error: float
    """Mean absolute error of the count by density; NaN without one"""
    count_bias: float
    """Mean of estimate - objects"""


def evaluate_by_count(
    found: GatheredPredictions, objects: Sequence[GroundTruth], *, num_classes: int, protocol: EvaluationProtocol
) -> dict[str, BinResult]:
    """Results of all images under "all", then of every bin of COUNT_BINS."""
    counts = object_counts(found, objects)
    metrics = count_metrics(found.predicted_counts, found.num_queries, counts)
    count_of = dict(zip(found.image_ids.tolist(), counts.tolist(), strict=True))
    records = list(image_records(found, objects))
    results = {}
    for name, (low, high) in {"all": (0, math.inf), **COUNT_BINS}.items():
        chosen = [record for record in records if low <= count_of[record.image_id] <= high]
        summary = detection_metrics(chosen, num_classes=num_classes, protocol=protocol).summary()
        suffix = "" if name == "all" else f"_{name}"
        results[name] = BinResult(
            images=len(chosen),
            average_precision=measured(summary["mAP"]),
            average_precision_50=measured(summary["mAP_50"]),
            very_tiny_precision=measured(summary.get("mAP_vt", -1.0)),
            average_recall=measured(summary[f"AR@{protocol.max_detections[-1]}"]),
            mean_queries=metrics[f"mean_queries{suffix}"],
            coverage=metrics[f"coverage{suffix}"],
            count_error=metrics[f"count_MAE{suffix}"],
            count_bias=metrics[f"count_bias{suffix}"],
        )
    return results


def format_settings(settings: Mapping[str, Mapping[str, BinResult]]) -> str:
    """Format the settings below each other in every bin; shares in percent, `-` where nothing is measured.

    settings   name -> results of `evaluate_by_count`, all on the same images
    """
    rows = []
    for name in ("all", *COUNT_BINS):
        if not any(results[name].images for results in settings.values()):
            rows.append([name, "0", *"-----"])
            continue
        for index, (setting, results) in enumerate(settings.items()):
            result = results[name]
            rows.append(
                [
                    "" if index else name,
                    "" if index else str(result.images),
                    setting,
                    format_percent(result.average_precision),
                    format_percent(result.average_recall),
                    format_number(result.mean_queries, ".1f"),
                    format_percent(result.coverage),
                ]
            )
    heading = ["objects in image", "images", "setting", "AP, %", "AR, %", "mean queries", "queries >= objects, %"]
    return format_table(heading, rows)
