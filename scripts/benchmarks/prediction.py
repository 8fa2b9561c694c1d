"""Prediction in tiles: a mosaic of labelled images against each of them alone; time, memory and seams; merging.

    python scripts/make_scenes.py --out data/unseen --train 1 --val 961 --max-count 150 --seed 7
    python scripts/benchmark.py predict --resume X.pth --data data/unseen --side 31

The mosaic is side x side images of one size from the validation split. Objects near a seam, within one overlap, are
compared with the others: how many are missed, and how many found twice, above --conf.
"""

import argparse
import json
import resource
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.paths import path_argument
from engine.commands.predict import Predictor, load_predictor
from engine.evaluation.gallery import Matching, match_detections
from engine.metrics.average_precision import detection_metrics, get_protocol
from engine.metrics.records import ImageRecord
from engine.prediction.images import Selection, merge_findings, search_tiles, tile_findings
from engine.prediction.merging import merge_tiles
from engine.prediction.records import FoundObjects
from engine.prediction.tiles import TilePlan, plan_tiles
from scripts.benchmarks.harness import Cell, Table

BOXES = 100_000
LIMIT = 1500
"""Detections of a small image that count; the mosaic's limit is that of all of them"""


@dataclass(frozen=True)
class Labelled:
    """An image with its objects: boxes (N, 4) xyxy px, labels (N,)."""

    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", type=path_argument, required=True, help="the detector")
    parser.add_argument("--data", type=path_argument, required=True, help="data set with annotations/val.json and val/")
    parser.add_argument("--side", type=int, default=10, help="images along a side of the mosaic")
    parser.add_argument("--conf", type=float, default=0.25, help="of the comparison at seams")


def measure(options: argparse.Namespace) -> Sequence[Table]:
    predictor = load_predictor(options.resume)
    images = read_images(options.data, options.side**2)
    size = images[0].image.size
    alone, alone_seconds = predict_alone(predictor, images)
    whole = mosaic(images, options.side)
    plan = plan_tiles(*whole.image.size, tile=predictor.tile_size(), overlap=0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = search_tiles(
        *(plan, whole.image.crop, predictor.detect),
        batch_size=predictor.config.data.batch_size,
        selection=Selection(0.0),
    )
    merged = merge_findings(plan, found)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Cut into the cells of the mosaic again, so that both are scored image by image, under the same limits.
    cells = split_cells(merged.objects, size, options.side)
    rows: list[dict[str, Cell]] = [
        {"predicted": "each image alone", **scores(predictor, images, alone), "ms per tile": 1e3 * alone_seconds},
        {
            **{"predicted": f"mosaic of {whole.image.width} px", **scores(predictor, images, cells)},
            "ms per tile": 1e3 * seconds / len(plan),
        },
    ]
    tables = [Table(f"Prediction in {len(plan)} tiles of {plan.tile_width} px, {len(whole.boxes):,} objects", rows)]
    tables.append(Table("Objects near seams and inside tiles", seams(plan, whole, merged.objects, options.conf)))
    tables.append(merging(len(predictor.class_names)))
    tables[-1].rows[0]["peak of the mosaic above the model, MB"] = (after - before) / 1024
    return tables


def read_images(root: Path, count: int) -> list[Labelled]:
    content = json.loads((root / "annotations" / "val.json").read_text())
    categories = sorted(each["id"] for each in content["categories"])
    label_of = {category: label for label, category in enumerate(categories)}
    objects: dict[int, list[dict[str, Any]]] = {}
    for each in content["annotations"]:
        objects.setdefault(each["image_id"], []).append(each)
    images = []
    for entry in content["images"][:count]:
        with Image.open(root / "val" / entry["file_name"]) as image:
            pixels = image.convert("RGB")
        rows = objects.get(entry["id"], [])
        boxes = np.array([each["bbox"] for each in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        images.append(Labelled(pixels, boxes, np.array([label_of[each["category_id"]] for each in rows], np.int64)))
    if len(images) < count or len({each.image.size for each in images}) > 1:
        raise SystemExit(f"{root}: the mosaic needs {count} images of one size; it has {len(images)}")
    return images


def predict_alone(predictor: Predictor, images: Sequence[Labelled]) -> tuple[list[FoundObjects], float]:
    """Objects of each image, and seconds per image."""
    found, batch = [], predictor.config.data.batch_size
    start = time.perf_counter()
    for first in range(0, len(images), batch):
        chosen = [each.image for each in images[first : first + batch]]
        for image, prediction in zip(chosen, predictor.detect(chosen), strict=True):
            plan = plan_tiles(*image.size, tile=None, overlap=0)
            found.append(merge_findings(plan, tile_findings(plan, 0, prediction, Selection(0.0))).objects)
    return found, (time.perf_counter() - start) / len(images)


def mosaic(images: Sequence[Labelled], side: int) -> Labelled:
    width, height = images[0].image.size
    page = Image.new("RGB", (side * width, side * height))
    boxes = []
    for place, each in enumerate(images):
        corner = (place % side * width, place // side * height)
        page.paste(each.image, corner)
        boxes.append(each.boxes + np.tile(corner, 2))
    return Labelled(page, np.concatenate(boxes), np.concatenate([each.labels for each in images]))


def split_cells(found: FoundObjects, size: tuple[int, int], side: int) -> list[FoundObjects]:
    """The objects of the mosaic by the image that their centre lies in, in px of that image."""
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    column, row = np.clip((centres // size).astype(int), 0, side - 1).T
    cell = row * side + column
    order = np.argsort(cell, kind="stable")
    limits = np.searchsorted(cell[order], np.arange(side * side + 1))
    cells = []
    for place in range(side * side):
        rows = order[limits[place] : limits[place + 1]]
        corner = np.tile([place % side * size[0], place // side * size[1]], 2)
        boxes = (found.boxes[rows] - corner).clip(0, np.tile(size, 2))
        cells.append(FoundObjects(boxes, found.scores[rows], found.labels[rows]))
    return cells


def scores(predictor: Predictor, images: Sequence[Labelled], found: Sequence[FoundObjects]) -> dict[str, float]:
    """AP and AP50 of all images, %."""
    records = []
    for number, (image, objects) in enumerate(zip(images, found, strict=True)):
        sizes = image.boxes[:, 2:] - image.boxes[:, :2]
        records.append(
            ImageRecord(
                image_id=number,
                gt_boxes=np.concatenate([image.boxes[:, :2], sizes], axis=1),
                gt_labels=image.labels,
                gt_areas=sizes.prod(axis=1),
                gt_crowd=np.zeros(len(sizes), np.bool_),
                boxes=np.concatenate([objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]], axis=1),
                scores=objects.scores,
                labels=objects.labels,
            )
        )
    protocol = get_protocol("aitod", LIMIT)
    summary = detection_metrics(records, num_classes=len(predictor.class_names), protocol=protocol).summary()
    return {"AP, %": 100 * summary["mAP"], "AP50, %": 100 * summary["mAP_50"]}


def seams(plan: TilePlan, truth: Labelled, found: FoundObjects, conf: float) -> list[dict[str, Cell]]:
    """Of objects near a seam and of others: the share that is missed, and that has more than one detection."""
    shown = found.scores >= conf
    boxes, labels, detection_scores = found.boxes[shown], found.labels[shown], found.scores[shown]
    near = _near_seams(plan, (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2)
    missed, doubled = np.zeros(len(truth.boxes), np.bool_), np.zeros(len(truth.boxes), np.bool_)
    block = 512
    for top in range(0, plan.height, block):
        for left in range(0, plan.width, block):
            inside = _within(truth.boxes, left, top, block, 0)
            around = _within(boxes, left, top, block, 64)
            theirs = truth.boxes[inside], truth.labels[inside]
            first, again = _found_twice(boxes[around], detection_scores[around], labels[around], *theirs, conf)
            missed[inside], doubled[inside] = ~first.found, first.found & again.found
    return [
        {
            "objects": name,
            "number": int(chosen.sum()),
            "missed, %": 100 * float(missed[chosen].mean()),
            "found twice, %": 100 * float(doubled[chosen].mean()),
        }
        for name, chosen in (("within one overlap of a seam", near), ("inside tiles", ~near))
    ]


def _found_twice(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    objects: np.ndarray,
    object_labels: np.ndarray,
    conf: float,
) -> tuple[Matching, Matching]:
    """The objects that are found, and those that what is left over finds again."""
    first = match_detections(boxes, scores, labels, objects, object_labels, score_threshold=conf)
    rest = ~first.true_positive
    again = match_detections(boxes[rest], scores[rest], labels[rest], objects, object_labels, score_threshold=conf)
    return first, again


def _near_seams(plan: TilePlan, centres: np.ndarray) -> np.ndarray:
    close = np.zeros(len(centres), np.bool_)
    for axis, overlap in ((0, plan.overlap_x), (1, plan.overlap_y)):
        places = np.unique(plan.own_regions[:, axis])[1:]
        distance = np.abs(centres[:, axis, None] - places[None]).min(axis=1)
        close |= distance <= overlap
    return close


def _within(boxes: np.ndarray, left: int, top: int, side: int, margin: int) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = np.array([left, top]) - margin, np.array([left, top]) + side + margin
    return np.asarray(((centres >= low) & (centres < high)).all(axis=1))


def merging(classes: int) -> Table:
    """BOXES objects of 12 px on a large raster, each found by every tile that sees it."""
    rng = np.random.default_rng(0)
    plan = plan_tiles(12_000, 12_000, tile=(512, 512), overlap=0.2)
    centres, sides = rng.uniform(0, 12_000, (BOXES, 2)), np.exp(rng.normal(np.log(12), 0.5, (BOXES, 2)))
    objects = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).clip(0, 12_000)
    labels = rng.integers(0, classes, BOXES)
    rows = []
    for tile, (x0, y0, x1, y1) in enumerate(plan.boxes.tolist()):
        seen = objects.clip([x0, y0, x0, y0], [x1, y1, x1, y1])
        kept = np.nonzero(((seen[:, 2:] - seen[:, :2]) > 1).all(axis=1))[0]
        rows.append((np.full(len(kept), tile), seen[kept], labels[kept]))
    tiles, boxes, kinds = (np.concatenate(each) for each in zip(*rows, strict=True))
    found = FoundObjects(boxes, rng.random(len(boxes)), kinds)
    start = time.process_time()
    merged = len(merge_tiles(plan, tiles, found))
    seconds = time.process_time() - start
    tracemalloc.start()
    merge_tiles(plan, tiles, found)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    row: dict[str, Cell] = {
        "boxes of all tiles": len(boxes),
        "objects": BOXES,
        "after merging": merged,
        "CPU s": seconds,
    }
    row["peak MB"] = peak
    return Table("Merging", [row])
