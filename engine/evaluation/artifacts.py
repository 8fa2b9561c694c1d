"""Outputs of an evaluation: report on the terminal, numbers in files, gallery of pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.structures import GroundTruth
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import Evaluation, GatheredPredictions, ImagePrediction
from engine.evaluation.fingerprint import annotations_digest
from engine.evaluation.gallery import Picture, draw_gallery
from engine.evaluation.report import Report, format_report, report_record
from engine.logger import RunLogger, naming
from engine.metrics.protocols import EvaluationProtocol


def show_evaluation(
    evaluation: Evaluation,
    *,
    objects: Sequence[GroundTruth],
    class_names: Sequence[str],
    read_image: Callable[[int], Image.Image],
    scores: str,
    score_threshold: float,
    logger: RunLogger,
    folder: Path,
    step: int,
) -> None:
    """Write `evaluation.txt`, `evaluation.json`, `gallery.png` into the folder, and log the report.

    objects   of all images; read_image takes their index
    scores    those that the evaluation is of: published or corrected
    """
    labels = [record.labels[~record.crowd] for record in objects]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(class_names))
    report = Report(
        metrics=evaluation.metrics,
        class_names=class_names,
        objects_per_class=counts.tolist(),
        counts=evaluation.counts,
        seconds_per_image=evaluation.seconds_per_image,
        peak_memory_mb=evaluation.peak_memory_mb,
        scores=scores,
        corrected=evaluation.corrected,
        saturated=saturated_images(evaluation.predictions, evaluation.metrics.protocol),
        annotations=annotations_digest(objects),
    )
    folder.mkdir(parents=True, exist_ok=True)
    text, record = format_report(report), report_record(report)
    logger.say(f"step {step}\n{text}")
    with naming(folder):
        (folder / "evaluation.txt").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        (folder / "evaluation.json").write_text(json.dumps(record | {"step": step}, indent=1) + "\n", encoding="utf-8")
    numbers = {name: value for name, value in _logged(record).items() if value is not None}
    logger.record("evaluation", step, numbers)
    if evaluation.pictures:
        index = {truth.image_id: i for i, truth in enumerate(objects)}
        pictures = [
            _picture(found, objects[index[found.image_id]], read_image(index[found.image_id]))
            for found in evaluation.pictures
        ]
        gallery = draw_gallery(pictures, class_names, score_threshold)
        with naming(folder):
            gallery.save(folder / "gallery.png")
        logger.image("evaluation/gallery", step, gallery)


def _logged(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures of a report's record, by their names in `metrics.jsonl`."""
    numbers = record["detection"] | {f"count/{name}": value for name, value in record["counts"].items()}
    numbers["calibration_error"] = record["calibration"]["error"]
    if record["corrected"] is not None:
        numbers |= {f"corrected/{name}": value for name, value in record["corrected"]["detection"].items()}
        numbers["corrected/calibration_error"] = record["corrected"]["calibration"]["error"]
    return numbers


def saturated_images(found: GatheredPredictions, protocol: EvaluationProtocol) -> int:
    """Images with as many detections as the protocol's last limit, of a class or of all."""
    limit = protocol.max_detections[-1]
    many = found.num_detections >= limit
    if protocol.limits_all_classes:
        return int(many.sum())
    spans = zip(found.first_detection[many].tolist(), found.num_detections[many].tolist(), strict=True)
    labels = (found.detections[first : first + count, 5].astype(np.int64) for first, count in spans)
    return sum(int(np.bincount(each).max() >= limit) for each in labels)


def gallery_indices(objects_per_image: np.ndarray, wanted: int, processes: Processes) -> list[int]:
    """Images of the main process, evenly over the range of object counts; none on other processes."""
    mine = range(processes.rank, len(objects_per_image), processes.world_size)
    by_count = sorted(mine, key=lambda index: int(objects_per_image[index]))
    wanted = min(wanted, len(by_count))
    if not processes.is_main or wanted == 0:
        return []
    return [by_count[round(i * (len(by_count) - 1) / max(wanted - 1, 1))] for i in range(wanted)]


def _picture(found: ImagePrediction, truth: GroundTruth, image: Image.Image) -> Picture:
    """People see corrected scores, where there are any."""
    boxes = truth.boxes[~truth.crowd]
    corrected = found.corrected_scores
    return Picture(
        image_id=found.image_id,
        image=np.asarray(image),
        object_boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        object_labels=truth.labels[~truth.crowd],
        boxes=found.boxes.numpy(),
        scores=(found.scores if corrected is None else corrected).numpy(),
        score_name="score" if corrected is None else "corrected score",
        labels=found.labels.numpy(),
        num_queries=found.num_queries,
        predicted_count=found.predicted_count,
        expected_count=found.expected_count,
        density_map=None if found.density_map is None else found.density_map.numpy(),
        density_extent=found.density_extent,
    )
