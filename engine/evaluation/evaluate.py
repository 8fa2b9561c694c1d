"""Evaluation of every image once, on any number of processes: metrics, count errors, pictures."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.structures import Batch, GroundTruth
from engine.analysis.causes import QueryStarts
from engine.analysis.report.gallery import DensityLayer, density_layer
from engine.distributed.processes import Processes, gather_rows
from engine.evaluation.query_starts import gather_starts
from engine.metrics.average_precision import DetectionMetrics, EvaluationProtocol, ImageRecord, detection_metrics
from engine.metrics.counting import count_metrics
from engine.runtime import peak_memory_mb
from engine.step_errors import NonFiniteLossError
from engine.train import autocast
from models.structures import Detections, DetectorOutput

SCORE, CORRECTED_SCORE = 4, 6
"""Columns of `GatheredPredictions.detections`"""


@dataclass(frozen=True)
class ImagePrediction:
    """Detections and count estimate of one image."""

    image_id: int
    boxes: Tensor
    """(N, 4) float32 xyxy px of the file"""
    scores: Tensor
    """(N,) descending"""
    labels: Tensor
    """(N,)"""
    num_queries: int
    predicted_count: float | None
    """None without a density map"""
    density_map: Tensor | None
    """(H, W) objects per cell, of the padded network input"""
    density_extent: tuple[float, float]
    """Share (height, width) of the map that the image covers"""
    corrected_scores: Tensor | None = None
    """(N,) see `Detections`; None where scores cannot be corrected"""
    object_probability: Tensor | None = None
    """(N,) see `Detections`; None as above"""
    expected_count: float | None = None
    """Sum of the corrected probabilities of an object over all queries; None as above"""
    query_starts: QueryStarts | None = None
    """Where the analysis asks for them"""


@dataclass(frozen=True, eq=False)
class GatheredPredictions:
    """Predictions of all images; the same on every process, except pictures and time."""

    image_ids: np.ndarray
    """(I,) int64, ascending: sums over images are the same on any number of processes"""
    first_detection: np.ndarray
    """(I,) int64: row of the first detection of image i"""
    num_detections: np.ndarray
    """(I,) int64: its rows, from the first on"""
    num_queries: np.ndarray
    """(I,)"""
    predicted_counts: np.ndarray | None
    """(I,) objects; None without a density map"""
    expected_counts: np.ndarray | None
    """(I,) objects; None where scores cannot be corrected"""
    detections: np.ndarray
    """(N, 7) float32 x0, y0, x1, y1, score, label, corrected score or NaN; px of the file"""
    pictures: list[ImagePrediction]
    """Predictions of the requested images that this process evaluated"""
    seconds_per_image: float
    """Of this process"""
    query_starts: Mapping[int, QueryStarts] = field(default_factory=dict)
    """By image id, where they were recorded"""
    own_image_ids: frozenset[int] = frozenset()
    """Images that this process evaluated"""
    densities: Mapping[int, DensityLayer] = field(default_factory=dict)
    """By image id: of this process's images, where query starts were recorded"""

    @property
    def corrected_differ(self) -> bool:
        """Whether corrected scores are known, and others are evaluated."""
        corrected = self.detections[:, CORRECTED_SCORE]
        return not np.isnan(corrected).any() and not np.array_equal(corrected, self.detections[:, SCORE])


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation; the same on every process, except pictures and time."""

    metrics: DetectionMetrics
    corrected: DetectionMetrics | None
    """With corrected scores, where the metrics are of published ones that can be corrected"""
    counts: dict[str, float]
    seconds_per_image: float
    """Forward pass and postprocessing, batch time over batch size, mean over the images of this process"""
    peak_memory_mb: float
    """GPU memory, or on a CPU the largest resident size of the process"""
    predictions: GatheredPredictions
    """Of all images"""

    @property
    def score(self) -> float:
        """Mean AP, 0 where nothing could be measured: by it the best checkpoint is chosen."""
        return max(self.metrics.summary()["mAP"], 0.0)

    @property
    def pictures(self) -> list[ImagePrediction]:
        """Predictions of the requested images that this process evaluated."""
        return self.predictions.pictures


@torch.inference_mode()
def predict_batches(
    detector: nn.Module,
    postprocess: Callable[..., Sequence[Any]],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    amp: str,
    record_queries: Callable[[DetectorOutput, int, tuple[int, int], Detections], QueryStarts] | None = None,
) -> Iterator[tuple[list[ImagePrediction], float]]:
    """Predictions on the CPU and seconds, batch by batch.

    record_queries   output, image of the batch, (H, W) of its file, its detections -> where the queries started
    """
    detector.eval()
    for batch in batches:
        start = time.perf_counter()
        batch = batch.to(device, non_blocking=True)
        with autocast(device, amp):
            output = detector(batch.images, batch.padding_mask)
        sizes = [target.size for target in batch.targets]
        detections = postprocess(output, sizes, [target.original_size for target in batch.targets])
        density_map, predicted_count = output.aux.get("density_map"), output.aux.get("predicted_count")
        height, width = batch.images.shape[-2:]
        yield (
            [
                ImagePrediction(
                    image_id=target.image_id,
                    boxes=found.boxes.cpu(),
                    scores=found.scores.cpu(),
                    labels=found.labels.cpu(),
                    num_queries=int(output.num_queries[i]),
                    predicted_count=None if predicted_count is None else float(predicted_count[i]),
                    density_map=None if density_map is None else density_map[i, 0].cpu(),
                    density_extent=(target.size[0] / height, target.size[1] / width),
                    corrected_scores=None if found.corrected_scores is None else found.corrected_scores.cpu(),
                    object_probability=None if found.object_probability is None else found.object_probability.cpu(),
                    expected_count=(
                        None if found.object_probability is None else float(found.object_probability.double().sum())
                    ),
                    query_starts=(
                        None if record_queries is None else record_queries(output, i, target.original_size, found)
                    ),
                )
                for i, (target, found) in enumerate(zip(batch.targets, detections, strict=True))
            ],
            time.perf_counter() - start,
        )


def evaluate_detector(
    predictions: Iterable[tuple[list[ImagePrediction], float]],
    objects: Iterable[GroundTruth],
    *,
    num_classes: int,
    protocol: EvaluationProtocol,
    processes: Processes,
    picture_ids: frozenset[int] = frozenset(),
) -> Evaluation:
    """Gather the predictions of all processes and compare them with the objects of all images.

    predictions   of this process's share of the images
    objects       of every image of the data set
    picture_ids   images whose predictions are kept whole
    """
    found = gather_predictions(predictions, processes=processes, picture_ids=picture_ids)
    records = list(objects)
    annotated = object_counts(found, records)
    counts = count_metrics(found.predicted_counts, found.num_queries, annotated, found.expected_counts)

    def measured(column: int) -> DetectionMetrics:
        rows = image_records(found, records, score_column=column)
        return detection_metrics(rows, num_classes=num_classes, protocol=protocol)

    metrics = measured(SCORE)
    return Evaluation(
        metrics=metrics,
        corrected=measured(CORRECTED_SCORE) if found.corrected_differ else None,
        counts=counts,
        seconds_per_image=found.seconds_per_image,
        peak_memory_mb=peak_memory_mb(processes.device),
        predictions=found,
    )


def gather_predictions(
    predictions: Iterable[tuple[list[ImagePrediction], float]],
    *,
    processes: Processes,
    picture_ids: frozenset[int] = frozenset(),
) -> GatheredPredictions:
    """The predictions of all processes, without the density maps; arguments as in `evaluate_detector`."""
    rows, images, pictures, seconds = [torch.zeros(0, 7)], [], [], 0.0
    starts: dict[int, QueryStarts] = {}
    densities: dict[int, DensityLayer] = {}
    for batch, batch_seconds in predictions:
        seconds += batch_seconds
        for found in batch:
            corrected = found.corrected_scores
            corrected = torch.full_like(found.scores, np.nan) if corrected is None else corrected
            columns = [found.scores, found.labels, corrected]
            rows.append(torch.cat([found.boxes, *(column[:, None] for column in columns)], dim=1).float())
            estimates = [np.nan if x is None else x for x in (found.predicted_count, found.expected_count)]
            images.append([found.image_id, found.num_queries, len(found.boxes), *estimates])
            if found.image_id in picture_ids:
                pictures.append(found)
            if found.query_starts is not None:
                starts[found.image_id] = found.query_starts
                if found.density_map is not None:
                    densities[found.image_id] = density_layer(found.density_map.numpy(), found.density_extent)
    # Ids up to 2^53 are exact in float64, and so are labels up to 2^24 in float32.
    table = gather_rows(torch.tensor(images, dtype=torch.float64).view(-1, 5), processes).numpy()
    order = np.argsort(table[:, 0], kind="stable")
    last_detection = np.cumsum(table[:, 2])[order]
    table = table[order]
    detections = torch.cat(rows)
    rows.clear()  # frees as much memory as all detections
    return GatheredPredictions(
        image_ids=table[:, 0].astype(np.int64),
        first_detection=(last_detection - table[:, 2]).astype(np.int64),
        num_detections=table[:, 2].astype(np.int64),
        num_queries=table[:, 1],
        predicted_counts=None if np.isnan(table[:, 3]).any() else table[:, 3],
        expected_counts=None if np.isnan(table[:, 4]).any() else table[:, 4],
        detections=gather_rows(detections, processes).numpy(),
        pictures=pictures,
        seconds_per_image=seconds / max(len(images), 1),
        query_starts=gather_starts(starts, processes),
        own_image_ids=frozenset(int(row[0]) for row in images),
        densities=densities,
    )


def image_records(
    found: GatheredPredictions, objects: Sequence[GroundTruth], *, score_column: int = SCORE
) -> Iterator[ImageRecord]:
    """Detections and objects side by side, image by image; each image must be among the predicted.

    score_column   SCORE or CORRECTED_SCORE

    Raises NonFiniteLossError, on all processes alike.
    """
    position_of = {image_id: position for position, image_id in enumerate(found.image_ids.tolist())}
    for record in objects:
        position = position_of[record.image_id]
        first, count = int(found.first_detection[position]), int(found.num_detections[position])
        mine = found.detections[first : first + count].astype(np.float64)
        if not np.isfinite(mine[:, [*range(CORRECTED_SCORE), score_column]]).all():
            raise NonFiniteLossError(
                f"the predictions of image {record.image_id} are not finite: training has diverged; resume from an "
                "earlier checkpoint with a lower optim.lr"
            )
        yield ImageRecord(
            image_id=record.image_id,
            gt_boxes=record.boxes,
            gt_labels=record.labels,
            gt_areas=record.areas,
            gt_crowd=record.crowd,
            boxes=np.concatenate([mine[:, :2], mine[:, 2:4] - mine[:, :2]], axis=1),
            scores=mine[:, score_column],
            labels=mine[:, 5].astype(np.int64),
        )


def object_counts(found: GatheredPredictions, objects: Sequence[GroundTruth]) -> np.ndarray:
    """(I,) annotated objects in the order of `found`, without crowd regions.

    Raises ValueError unless every image was predicted exactly once.
    """
    counts = {record.image_id: int((~record.crowd).sum()) for record in objects}
    seen, times = np.unique(found.image_ids, return_counts=True)
    if (times > 1).any():
        raise ValueError(f"images {seen[times > 1][:10].tolist()} were predicted twice")
    if missing := sorted(counts.keys() - set(seen.tolist())):
        raise ValueError(f"{len(missing)} images were not predicted, for example {missing[:10]}")
    return np.array([counts[image_id] for image_id in found.image_ids.tolist()])
