"""Why a detector missed objects: analysis and page of a checkpoint, or of any detector's results file."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import Config
from datasets.coco import CocoDetection
from datasets.errors import DataError
from datasets.loading import worker_failures_named
from datasets.structures import GroundTruth
from engine.analysis.atlas import Atlas, AtlasBuilder
from engine.analysis.causes import QueryStarts
from engine.analysis.report.gallery import MOST_IMAGES, DensityLayer, Shown, chosen_images, gallery_images
from engine.analysis.report.page import render_page
from engine.analysis.summary import analysis_record
from engine.checkpoints.checkpoint import Checkpoint
from engine.commands.evaluate import build_trained, evaluate_batches, evaluation_loader, under_progress
from engine.commands.exit_codes import UsageError
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import Evaluation, GatheredPredictions, image_records
from engine.logger import RunLogger, naming
from engine.metrics.average_precision import DetectionMetrics, ImageRecord
from engine.metrics.ignored_regions import counted_record

PUBLISHED = {
    "Deformable DETR, 300 queries": 17.8,
    "Deformable DETR + D3Q": 23.9,
    "DINO, 900 queries": 28.5,
    "DINO + D3Q": 30.2,
    "DINO + D3Q from a trained DINO": 32.1,
}
"""AP on AI-TOD-v2 test, percent; source: Ye et al., D3Q, JSTARS 2025"""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is analysed."""

    records: Callable[[Iterable[int]], Iterator[ImageRecord]]
    """Indices of images -> their records, made anew: all together they would be the largest arrays"""
    class_names: Sequence[str]
    metrics: DetectionMetrics
    score_threshold: float
    title: str
    subtitle: str
    read_image: Callable[[int], Image.Image] | None
    """Index of an image -> its pixels; None without images"""
    image_names: Sequence[str]
    """Of all images"""
    starts: Mapping[int, QueryStarts] = field(default_factory=dict)
    """By image id, where they were recorded"""
    densities: Mapping[int, DensityLayer] = field(default_factory=dict)
    """By image id, where there are any"""
    pictured: Collection[int] | None = None
    """Ids of the images that may get a picture; None: all"""
    counts: Mapping[str, float] | None = None
    """From `count_metrics`"""
    per_image: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    """queries, by_density, by_scores: (I,) or None"""
    training: Mapping[str, list[tuple[float, float | None]]] | None = None


def analyze_checkpoint(
    config: Config, checkpoint: Checkpoint, path: Path, processes: Processes, folder: Path, *, images: int
) -> dict[str, Any]:
    """Predict the validation split, and analyse it; one process. See `analyze`."""
    if processes.world_size > 1:
        raise UsageError(f"the analysis runs in one process, not in {processes.world_size}; start it without torchrun")
    dataset, detector = build_trained(config, checkpoint, path, processes)
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    loader = evaluation_loader(config.data, dataset, processes)
    batches = under_progress(loader, processes)
    with worker_failures_named(loader):
        evaluation = evaluate_batches(config, detector, batches, objects, processes, record_starts=True)
    progress = f"{checkpoint.progress}, " if checkpoint.progress.step else ""  # a stripped checkpoint has none
    subject = evaluated_subject(config, evaluation, dataset, objects, path, progress=progress)
    return analyze(subject, folder, images=images)


def evaluated_subject(
    config: Config,
    evaluation: Evaluation,
    dataset: CocoDetection,
    objects: Sequence[GroundTruth],
    checkpoint: Path,
    *,
    progress: str = "",
) -> Subject:
    """An evaluation that recorded where queries started; pictures are of images that this process evaluated."""
    found = evaluation.predictions
    place = {image_id: i for i, image_id in enumerate(found.image_ids.tolist())}
    order = [place[each.image_id] for each in objects]  # of the data set, not of the ids
    return Subject(
        records=lambda indices: image_records(found, [objects[i] for i in indices]),
        class_names=dataset.categories,
        metrics=evaluation.metrics,
        score_threshold=config.evaluation.gallery_score,
        title=checkpoint.name,
        subtitle=f"{progress}{config.evaluation.scores} scores, on {dataset.table.path.name}",
        read_image=dataset.read_image,
        image_names=image_names(dataset),
        starts=found.query_starts,
        pictured=found.own_image_ids,
        densities=found.densities,
        counts=evaluation.counts,
        per_image=_per_image(found, order),
        training=read_training(checkpoint),
    )


def write_training_report(
    config: Config, evaluation: Evaluation, dataset: CocoDetection, folder: Path, checkpoint: Path, logger: RunLogger
) -> None:
    """Write `report.html` and `analysis.json` of the last evaluation of a training; on the main process.

    A training is done without them: what prevents them is logged.
    """
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    try:
        analyze(evaluated_subject(config, evaluation, dataset, objects, checkpoint), folder, images=MOST_IMAGES)
    except (DataError, OSError) as error:
        logger.say(f"warning: no report: {error}; to write it: python scripts/analyze.py --resume {checkpoint}")
    else:
        logger.say(f"{folder / 'report.html'} says why objects were missed")


def analyze(subject: Subject, folder: Path, *, images: int) -> dict[str, Any]:
    """Write `analysis.json` and `report.html` into the folder; returns the record.

    images   most images of the page
    """
    every = range(len(subject.image_names))
    builder = AtlasBuilder(
        num_classes=len(subject.class_names),
        max_detections=subject.metrics.protocol.max_detections[-1],
        score_threshold=subject.score_threshold,
    )
    for record in _counted(subject, every):
        builder.add(record, subject.starts.get(record.image_id))
    atlas = builder.finish()
    counts = None if subject.counts is None else {k: v if math.isfinite(v) else None for k, v in subject.counts.items()}
    per_image = _image_rows(subject, atlas)
    analysis = analysis_record(atlas, subject.metrics, subject.class_names) | {
        "source": {"title": subject.title, "subtitle": subject.subtitle},
        "counts": counts,
        "per_image": per_image,
        "training": subject.training,
        "published": PUBLISHED if subject.counts is not None and subject.metrics.protocol.name == "aitod" else None,
    }
    gallery = [] if subject.read_image is None else gallery_images(_shown(subject, atlas, builder, images))
    objects = f"{analysis['images']:,} images, {analysis['objects']:,} objects"
    subtitle = f"{subject.subtitle}: {objects}; found means a score of at least {subject.score_threshold:g}."
    page = render_page(analysis, gallery, title=subject.title, subtitle=subtitle)
    with naming(folder):
        (folder / "analysis.json").write_text(json.dumps(analysis, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    return analysis


def _counted(subject: Subject, indices: Iterable[int]) -> Iterator[ImageRecord]:
    """Records as the metrics count them."""
    for record in subject.records(indices):
        yield counted_record(record, len(subject.class_names), subject.metrics.protocol)


def _shown(subject: Subject, atlas: Atlas, builder: AtlasBuilder, wanted: int) -> list[Shown]:
    estimate = subject.per_image.get("by_density")
    errors = np.zeros(len(atlas.objects)) if estimate is None else np.abs(estimate - atlas.objects)
    may = np.ones(len(errors), bool) if subject.pictured is None else np.isin(atlas.image_ids, [*subject.pictured])
    missed, false_alarms, errors, objects = (x[may] for x in (atlas.missed, atlas.false_alarms, errors, atlas.objects))
    chosen = may.nonzero()[0][chosen_images(missed, false_alarms, errors, objects, wanted)].tolist()
    queries, shown = subject.per_image.get("queries"), []
    for index, record in zip(chosen, _counted(subject, chosen), strict=True):
        starts = subject.starts.get(record.image_id)
        assert subject.read_image is not None
        shown.append(
            Shown(
                record,
                *builder.explain(record, starts),
                starts=starts,
                score_threshold=subject.score_threshold,
                image=partial(subject.read_image, index),
                name=subject.image_names[index],
                queries=None if queries is None else int(queries[index]),
                estimate=None if estimate is None else float(estimate[index]),
                density=subject.densities.get(record.image_id),
            )
        )
    return shown


def _per_image(found: GatheredPredictions, order: Sequence[int]) -> dict[str, np.ndarray | None]:
    columns = {"queries": found.num_queries, "by_density": found.predicted_counts, "by_scores": found.expected_counts}
    return {name: None if column is None else column[order] for name, column in columns.items()}


def _image_rows(subject: Subject, atlas: Atlas) -> list[dict[str, Any]]:
    known = {name: column.round(3) for name, column in subject.per_image.items() if column is not None}
    columns = {"objects": atlas.objects, "missed": atlas.missed, "false_alarms": atlas.false_alarms, **known}
    names = zip(atlas.image_ids.tolist(), subject.image_names, strict=True)
    return [
        {"image_id": image_id, "file": name} | {key: column[i].item() for key, column in columns.items()}
        for i, (image_id, name) in enumerate(names)
    ]


def image_names(dataset: CocoDetection) -> list[str]:
    """Paths of the image files below their folder."""
    return [dataset.path(i).relative_to(dataset.images_root).as_posix() for i in range(len(dataset))]


def read_training(checkpoint: Path) -> dict[str, list[tuple[float, float | None]]] | None:
    """Losses and AP by step from the `metrics.jsonl` of the run: beside the checkpoint, or in a folder of its name.

    None without one, and where it cannot be read: the log is not needed to explain a detector.
    """
    places = (checkpoint.parent / "metrics.jsonl", checkpoint.with_suffix("") / "metrics.jsonl")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    names = {"train": ("loss/class", "loss/box", "loss/giou", "loss/density"), "evaluation": ("mAP", "mAP_50")}
    curves: dict[str, list[tuple[float, float | None]]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            for name in names.get(entry["kind"], ()):
                if name in entry:
                    curves.setdefault(name, []).append((entry["step"], entry[name]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return curves or None
