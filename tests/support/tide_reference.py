"""Small random data sets, and what `tidecv` says of them.

python -m tests.support.tide_reference     writes tests/data/tide/cases.json.gz; needs the package tidecv
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics.average_precision import ImageRecord

FILE = Path(__file__).parents[1] / "data" / "tide" / "cases.json.gz"
NAMES = {
    "Loc": "localisation",
    "Cls": "classification",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Both": "both",
    "Miss": "missed",
    "FalsePos": "false positives",
    "FalseNeg": "false negatives",
}
SETTINGS = {
    "plain": {"images": 6, "classes": 3, "objects": 12, "noise": 1.5},
    "dense": {"images": 3, "classes": 2, "objects": 60, "noise": 2.5},
    "many classes": {"images": 12, "classes": 8, "objects": 10, "noise": 2.0},
    "precise": {"images": 5, "classes": 2, "objects": 15, "noise": 0.3},
    "crowds": {"images": 6, "classes": 3, "objects": 12, "noise": 1.5, "crowds": 2},
}


def random_records(
    seed: int, *, images: int, classes: int, objects: int, noise: float, crowds: int = 0, side: float = 120.0
) -> list[ImageRecord]:
    """Images with detections around the objects, of right and wrong class, twice and nowhere; every class has objects.

    noise   standard deviation of the detections' edges, px; objects are 6 to 20 px
    """
    rng = np.random.default_rng(seed)
    records = []
    for image_id in range(1, images + 1):
        sizes = rng.uniform(6, 20, (objects, 2))
        boxes = np.concatenate([rng.uniform(0, side - 20, (objects, 2)), sizes], axis=1)
        labels = rng.integers(0, classes, objects)
        labels[:classes] = np.arange(classes)[:objects]
        crowd = np.arange(objects) >= objects - crowds
        boxes[crowd, 2:] *= 2.5
        copies = rng.integers(0, 4, objects)
        found = np.repeat(boxes, copies, axis=0) + rng.normal(0, noise, (copies.sum(), 4))
        found[:, 2:] = found[:, 2:].clip(2)
        found_labels = np.repeat(labels, copies)
        wrong = rng.random(len(found)) < 0.25
        found_labels[wrong] = rng.integers(0, classes, wrong.sum())
        stray = np.concatenate([rng.uniform(0, side, (objects // 2, 2)), rng.uniform(4, 20, (objects // 2, 2))], axis=1)
        found = np.concatenate([found, stray])
        found_labels = np.concatenate([found_labels, rng.integers(0, classes, len(stray))])
        scores = rng.permutation(np.linspace(0.01, 0.99, len(found))) + rng.uniform(0, 0.001, len(found))
        areas = boxes[:, 2] * boxes[:, 3]
        records.append(ImageRecord(image_id, boxes, labels, areas, crowd, found, scores, found_labels))
    return records


def tide_numbers(records: list[ImageRecord]) -> dict[str, dict[str, float]]:
    """dAP (in [0, 1]) and counts of errors by `tidecv`; "AP" among the former."""
    from tidecv import TIDE, Data

    truth, found = Data("truth", max_dets=10**6), Data("found")
    for record in records:
        for box, label, crowd in zip(record.gt_boxes, record.gt_labels, record.gt_crowd, strict=True):
            add = truth.add_ignore_region if crowd else truth.add_ground_truth
            add(record.image_id, int(label), box.tolist())
        for box, label, score in zip(record.boxes, record.labels, record.scores, strict=True):
            found.add_detection(record.image_id, int(label), float(score), box.tolist())
    tide = TIDE()
    run = tide.evaluate(truth, found, mode=TIDE.BOX, name="run")
    gains = {**tide.get_main_errors()["run"], **tide.get_special_errors()["run"]}
    counts = {kind.short_name: count for kind, count in run.count_errors().items()}
    return {
        "dAP": {"AP": run.ap / 100} | {NAMES[name]: gain / 100 for name, gain in gains.items()},
        "counts": {NAMES[name]: count for name, count in counts.items()},
    }


def as_json(record: ImageRecord) -> dict[str, Any]:
    return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in vars(record).items()}


def main() -> None:
    cases = []
    for seed, (name, setting) in enumerate(SETTINGS.items()):
        records = random_records(seed, **setting)
        cases.append({"name": name, "records": list(map(as_json, records)), **tide_numbers(records)})
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(FILE, "wb", mtime=0) as file:
        file.write(json.dumps(cases).encode())


if __name__ == "__main__":
    main()
