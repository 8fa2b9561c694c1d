"""Why a detector missed objects: analysis and page of a checkpoint, or of any detector's results file."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import Config
from datasets.coco import CocoDetection
from datasets.loading import worker_failures_named
from engine.analysis.atlas import Atlas, AtlasBuilder
from engine.analysis.causes import QueryStarts
from engine.analysis.report.gallery import DensityLayer, Shown, chosen_images, density_layer, gallery_images
from engine.analysis.report.page import render_page
from engine.analysis.summary import analysis_record
from engine.checkpoints.checkpoint import Checkpoint
from engine.commands.evaluate import build_trained, evaluation_loader, under_progress
from engine.commands.exit_codes import UsageError
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import (
    GatheredPredictions,
    ImagePrediction,
    gather_predictions,
    image_records,
    object_counts,
    predict_batches,
)
from engine.evaluation.query_starts import query_recorder
from engine.logger import naming
from engine.metrics.average_precision import EvaluationProtocol, ImageRecord, detection_metrics, get_protocol
from engine.metrics.counting import count_metrics
from models.build import build_postprocess

PUBLISHED = {
    "Deformable DETR, 300 queries": 17.8,
    "Deformable DETR + D3Q": 23.9,
    "DINO, 900 queries": 28.5,
    "DINO + D3Q": 30.2,
    "DINO + D3Q from a trained DINO": 32.1,
}
"""AP on AI-TOD-v2 test, percent; source: Ye et al., D3Q, JSTARS 2025"""


@dataclass(eq=False)
class Extras:
    """What an analysis wants of each image beyond its detections, by image id."""

    starts: dict[int, QueryStarts] = field(default_factory=dict)
    densities: dict[int, DensityLayer] = field(default_factory=dict)

    def taken(self, predictions: Iterable[tuple[list[ImagePrediction], float]]) -> Iterator[tuple[list[Any], float]]:
        """The predictions; what they hold beyond detections is kept here in little memory."""
        for batch, seconds in predictions:
            for found in batch:
                if found.query_starts is not None:
                    self.starts[found.image_id] = found.query_starts
                if found.density_map is not None:
                    self.densities[found.image_id] = density_layer(found.density_map.numpy(), found.density_extent)
            yield batch, seconds


@dataclass(frozen=True, eq=False)
class Subject:
    """What is analysed."""

    records: Callable[[Iterable[int]], Iterator[ImageRecord]]
    """Indices of images -> their records, made anew: all together they would be the largest arrays"""
    class_names: Sequence[str]
    protocol: EvaluationProtocol
    score_threshold: float
    title: str
    subtitle: str
    read_image: Callable[[int], Image.Image] | None
    """Index of an image -> its pixels; None without images"""
    image_names: Sequence[str]
    """Of all images"""
    extras: Extras = field(default_factory=Extras)
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
    extras, objects = Extras(), [dataset.ground_truth(i) for i in range(len(dataset))]
    loader = evaluation_loader(config.data, dataset, processes)
    predictions = predict_batches(
        detector,
        build_postprocess(config),
        under_progress(loader, processes),
        device=processes.device,
        amp=config.runtime.amp,
        record_queries=query_recorder(class_agnostic=config.model.class_agnostic_proposals),
    )
    with worker_failures_named(loader):
        found = gather_predictions(extras.taken(predictions), processes=processes)
    annotated = object_counts(found, objects)
    place = {image_id: i for i, image_id in enumerate(found.image_ids.tolist())}
    order = [place[each.image_id] for each in objects]  # of the data set, not of the ids
    progress = f"{checkpoint.progress}, " if checkpoint.progress.step else ""  # a stripped checkpoint has none
    subject = Subject(
        records=lambda indices: image_records(found, [objects[i] for i in indices]),
        class_names=dataset.categories,
        protocol=get_protocol(config.evaluation.protocol, config.evaluation.max_detections),
        score_threshold=config.evaluation.gallery_score,
        title=path.name,
        subtitle=f"{progress}{config.evaluation.scores} scores, on {dataset.table.path.name}",
        read_image=dataset.read_image,
        image_names=image_names(dataset),
        extras=extras,
        counts=count_metrics(found.predicted_counts, found.num_queries, annotated, found.expected_counts),
        per_image=_per_image(found, order),
        training=read_training(path),
    )
    return analyze(subject, folder, images=images)


def analyze(subject: Subject, folder: Path, *, images: int) -> dict[str, Any]:
    """Write `analysis.json` and `report.html` into the folder; returns the record.

    images   most images of the page
    """
    every = range(len(subject.image_names))
    metrics = detection_metrics(subject.records(every), len(subject.class_names), subject.protocol)
    builder = AtlasBuilder(
        num_classes=len(subject.class_names),
        max_detections=subject.protocol.max_detections[-1],
        score_threshold=subject.score_threshold,
    )
    for record in subject.records(every):
        builder.add(record, subject.extras.starts.get(record.image_id))
    atlas = builder.finish()
    counts = None if subject.counts is None else {k: v if math.isfinite(v) else None for k, v in subject.counts.items()}
    per_image = _image_rows(subject, atlas)
    analysis = analysis_record(atlas, metrics, subject.class_names) | {
        "source": {"title": subject.title, "subtitle": subject.subtitle},
        "counts": counts,
        "per_image": per_image,
        "training": subject.training,
        "published": PUBLISHED if subject.counts is not None and subject.protocol.name == "aitod" else None,
    }
    gallery = [] if subject.read_image is None else gallery_images(_shown(subject, atlas, builder, images))
    objects = f"{analysis['images']:,} images, {analysis['objects']:,} objects"
    subtitle = f"{subject.subtitle}: {objects}; found means a score of at least {subject.score_threshold:g}."
    page = render_page(analysis, gallery, title=subject.title, subtitle=subtitle)
    with naming(folder):
        (folder / "analysis.json").write_text(json.dumps(analysis, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    return analysis


def _shown(subject: Subject, atlas: Atlas, builder: AtlasBuilder, wanted: int) -> list[Shown]:
    estimate = subject.per_image.get("by_density")
    errors = np.zeros(len(atlas.objects)) if estimate is None else np.abs(estimate - atlas.objects)
    chosen = chosen_images(atlas.missed, atlas.false_alarms, errors, atlas.objects, wanted)
    queries, shown = subject.per_image.get("queries"), []
    for index, record in zip(chosen, subject.records(chosen), strict=True):
        starts = subject.extras.starts.get(record.image_id)
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
                density=subject.extras.densities.get(record.image_id),
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
