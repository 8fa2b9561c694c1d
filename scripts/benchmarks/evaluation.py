"""Evaluation: the metrics of simulated detections at AI-TOD's density, and pycocotools on a few of the images.

Objects per image are log-normal, 1 to 2,000 of about 12 px, four fifths of them of one class. Of the detections, six in
ten are displaced objects and the rest background, with scores to match. "gather" collects the predictions of all
processes, "evaluate" matches and accumulates. AI-TOD's test set: --images 14018. pycocotools uses the same areas,
limits and thresholds; "difference" is the largest difference of any precision, recall or score.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from datasets.structures import GroundTruth
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import ImagePrediction, gather_predictions, image_records
from engine.metrics.average_precision import AITOD, DetectionMetrics, ImageRecord, detection_metrics
from scripts.benchmarks.harness import Cell, Table, median, peak_resident_mebibytes, seconds_alternately

CLASS_SHARES = (0.01, 0.01, 0.03, 0.05, 0.01, 0.8, 0.08, 0.01)
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=1000, help="per image")
    parser.add_argument("--compared", type=int, default=10, help="images that pycocotools evaluates too")


def measure(options: argparse.Namespace) -> list[Table]:
    return [
        Table("AI-TOD protocol", [_scale_row(options.images, options.detections)]),
        Table("beside pycocotools", list(_comparison_rows(options.compared, options.detections, options.repeats))),
    ]


def make_objects(image_id: int) -> GroundTruth:
    """A function of the id alone."""
    rng = np.random.default_rng((1, image_id))
    count = min(int(rng.lognormal(2.2, 1.4)) + 1, 2000)
    boxes = _boxes(rng, count)
    labels = rng.choice(len(CLASS_SHARES), count, p=CLASS_SHARES)
    return GroundTruth(image_id, boxes, labels, boxes[:, 2] * boxes[:, 3], np.zeros(count, dtype=bool))


def make_prediction(objects: GroundTruth, *, detections: int) -> ImagePrediction:
    rng = np.random.default_rng((2, objects.image_id))
    near = detections * 6 // 10
    source = rng.integers(0, len(objects.boxes), near)
    moved = objects.boxes[source]
    moved = moved + rng.normal(0, 0.15, (near, 4)) * np.tile(moved[:, 2:], (1, 2))
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    boxes = np.concatenate([moved, _boxes(rng, detections - near)])
    scores = np.concatenate([rng.beta(2, 3, near), rng.beta(1, 9, detections - near)])
    labels = rng.integers(0, len(CLASS_SHARES), detections)
    labels[:near] = np.where(rng.random(near) < 0.9, objects.labels[source], labels[:near])
    order = np.argsort(-scores)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return ImagePrediction(
        image_id=objects.image_id,
        boxes=torch.from_numpy(corners[order]).float(),
        scores=torch.from_numpy(scores[order]).float(),
        labels=torch.from_numpy(labels[order]),
        num_queries=detections,
        predicted_count=float(len(objects.boxes)),
        density_map=None,
        density_extent=(1.0, 1.0),
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) xywh px"""
    return np.concatenate([rng.uniform(0, 780, (count, 2)), np.exp(rng.normal(2.4, 0.45, (count, 2)))], axis=1)


def _scale_row(images: int, detections: int) -> dict[str, Cell]:
    objects = [make_objects(i) for i in range(images)]
    seconds: list[float] = []

    def work() -> None:
        making = 0.0

        def predictions() -> Iterator[tuple[list[ImagePrediction], float]]:
            nonlocal making
            for one in objects:
                start = time.process_time()
                batch = [make_prediction(one, detections=detections)]
                making += time.process_time() - start
                yield batch, 0.0

        start = time.process_time()
        found = gather_predictions(predictions(), processes=ALONE)
        middle = time.process_time()
        detection_metrics(image_records(found, objects), num_classes=len(CLASS_SHARES), protocol=AITOD)
        seconds.extend([middle - start - making, time.process_time() - middle])

    peak = peak_resident_mebibytes(work)
    return {
        "images": images,
        "detections": images * detections,
        "objects": sum(len(one.boxes) for one in objects),
        "gather, CPU s": seconds[0],
        "evaluate, CPU s": seconds[1],
        "peak memory of both, MiB": peak,
    }


def _comparison_rows(images: int, detections: int, repeats: int) -> Iterator[dict[str, Cell]]:
    objects = [make_objects(i) for i in range(1, images + 1)]
    predictions = [([make_prediction(one, detections=detections)], 0.0) for one in objects]
    records = list(image_records(gather_predictions(predictions, processes=ALONE), objects))
    results: dict[str, Any] = {}

    def ours() -> None:
        results["here"] = detection_metrics(records, len(CLASS_SHARES), AITOD)

    def theirs() -> None:
        results["pycocotools"] = coco_eval(records).eval

    work: dict[str, Callable[[], None]] = {"here": ours, "pycocotools": theirs}
    seconds = {name: median(values) for name, values in seconds_alternately(work, repeats=repeats).items()}
    for name, value in seconds.items():
        yield {
            "evaluator": name,
            "images": images,
            "seconds": value,
            "times faster": seconds["pycocotools"] / value,
            "difference": largest_difference(results["here"], results["pycocotools"]),
        }


def coco_eval(records: list[ImageRecord]) -> COCOeval:
    """pycocotools' evaluation of the same records under the AI-TOD protocol."""
    truth, found = CocoIndex(), CocoIndex()
    common = {
        "images": [{"id": record.image_id} for record in records],
        "categories": [{"id": k} for k in range(len(CLASS_SHARES))],
    }
    truth.dataset = common | {"annotations": _entries(records, truth=True)}
    found.dataset = common | {"annotations": _entries(records, truth=False)}
    with contextlib.redirect_stdout(io.StringIO()):
        for index in (truth, found):
            index.createIndex()
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.areaRng = [list(bounds) for bounds in AITOD.areas.values()]
        evaluator.params.areaRngLbl = list(AITOD.areas)
        evaluator.params.maxDets = list(AITOD.max_detections)
        evaluator.params.iouThrs = np.array(AITOD.iou_thresholds)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _entries(records: list[ImageRecord], *, truth: bool) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for record in records:
        boxes, labels = (record.gt_boxes, record.gt_labels) if truth else (record.boxes, record.labels)
        areas = record.gt_areas if truth else boxes[:, 2] * boxes[:, 3]
        for i, (box, label, area) in enumerate(zip(boxes.tolist(), labels.tolist(), areas.tolist(), strict=True)):
            entry = {"id": len(entries) + 1, "image_id": record.image_id, "category_id": label, "bbox": box}
            extra = {"iscrowd": int(record.gt_crowd[i])} if truth else {"score": float(record.scores[i])}
            entries.append(entry | extra | {"area": area})
    return entries


def largest_difference(ours: DetectionMetrics, theirs: dict[str, np.ndarray]) -> float:
    pairs = ((ours.precision, "precision"), (ours.recall, "recall"), (ours.scores, "scores"))
    return max(float(np.abs(array - theirs[name]).max()) for array, name in pairs)
