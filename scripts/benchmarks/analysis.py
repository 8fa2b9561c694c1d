"""Analysis of errors at AI-TOD's density, without the page: CPU seconds and peak memory.

Objects and detections as in `eval`; 600 proposals of each image are kept, 300 of them queries. AI-TOD's test set:
--images 14018. "analysis" names errors and causes and sums them up; the metrics that it shows are measured by `eval`.
"""

import argparse
import time

import numpy as np

from engine.analysis.atlas import AtlasBuilder
from engine.analysis.causes import QueryStarts
from engine.analysis.summary import analysis_record
from engine.metrics.average_precision import AITOD, ImageRecord, detection_metrics
from scripts.benchmarks.evaluation import CLASS_SHARES, make_objects, make_prediction
from scripts.benchmarks.harness import Cell, Table, peak_resident_mebibytes

QUERIES = 300


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=1000, help="per image")


def measure(options: argparse.Namespace) -> list[Table]:
    return [Table("error types and causes, AI-TOD protocol", [_scale_row(options.images, options.detections)])]


def make_image(image_id: int, *, detections: int) -> tuple[ImageRecord, QueryStarts]:
    """A function of its arguments alone."""
    objects = make_objects(image_id)
    found = make_prediction(objects, detections=detections)
    boxes = found.boxes.numpy().astype(np.float64)
    record = ImageRecord(
        image_id=image_id,
        gt_boxes=objects.boxes,
        gt_labels=objects.labels,
        gt_areas=objects.areas,
        gt_crowd=objects.crowd,
        boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        scores=found.scores.numpy().astype(np.float64),
        labels=found.labels.numpy(),
    )
    rng = np.random.default_rng((3, image_id))
    centres = rng.uniform(0, 800, (2 * QUERIES, 2)).astype(np.float32)
    return record, QueryStarts(centres, QUERIES, rng.integers(0, QUERIES, detections))


def _scale_row(images: int, detections: int) -> dict[str, Cell]:
    seconds: list[float] = []
    figures: list[dict[str, int]] = []
    nothing = detection_metrics([], len(CLASS_SHARES), AITOD)

    def work() -> None:
        builder = AtlasBuilder(num_classes=len(CLASS_SHARES), max_detections=1500, score_threshold=0.3)
        spent = 0.0
        for image_id in range(images):
            image = make_image(image_id, detections=detections)
            start = time.process_time()
            builder.add(*image)
            spent += time.process_time() - start
        start = time.process_time()
        record = analysis_record(builder.finish(), nothing, [f"class {k}" for k in range(len(CLASS_SHARES))])
        seconds.append(spent + time.process_time() - start)
        figures.append({name: record[name] for name in ("objects", "missed")})

    peak = peak_resident_mebibytes(work)
    return {
        "images": images,
        "detections": images * detections,
        **figures[0],
        "analysis, CPU s": seconds[0],
        "peak memory, MiB": peak,
    }
