"""An evaluation, assembled from a config: of a checkpoint, or of a detector in training."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import nn

from configs.paths import expand_path
from configs.schema import Config, DataConfig
from datasets.build import build_eval_loader
from datasets.checks import check_trained_classes
from datasets.coco import CocoDetection
from datasets.loading import ImageLoader, worker_failures_named
from datasets.structures import Batch, GroundTruth
from engine.checkpoints.checkpoint import Checkpoint, load_weights
from engine.checkpoints.folder_use import open_evaluation
from engine.commands.setup import attention_lines, check_same_data, open_split
from engine.distributed.processes import Processes
from engine.evaluation.artifacts import gallery_indices, show_evaluation
from engine.evaluation.coco_results import dump_results
from engine.evaluation.evaluate import Evaluation, evaluate_detector, predict_batches
from engine.evaluation.query_starts import query_recorder
from engine.logger import RunLogger, progress
from engine.metrics.average_precision import get_protocol
from engine.runtime import accelerate
from models.build import build_detector, build_postprocess


def evaluate_checkpoint(
    config: Config, checkpoint: Checkpoint, path: Path, processes: Processes, *, dump: bool = False
) -> None:
    """Evaluate a checkpoint on the validation split; results go into a folder of their own (`open_evaluation`).

    dump   write the detections too, predictions.json
    """
    named = config.runtime.output_dir
    dataset, detector = build_trained(config, checkpoint, path, processes)
    folder = open_evaluation(path, None if named is None else expand_path(named, "runtime.output_dir"), processes)
    with RunLogger(folder, is_main=processes.is_main) as logger:
        logger.say(f"{path}: {checkpoint.progress}")
        for line in attention_lines(processes):
            logger.say(line)
        evaluate(config, detector, dataset, processes, logger, folder, step=checkpoint.progress.step, dump=dump)
        logger.say(f"done: {folder} holds the report and the gallery{' and predictions.json' if dump else ''}")


def build_trained(
    config: Config, checkpoint: Checkpoint, path: Path, processes: Processes
) -> tuple[CocoDetection, nn.Module]:
    """The validation split of the config, and the detector with the checkpoint's weights."""
    dataset = open_split(config, processes, training=False)
    check_trained_classes(dataset, checkpoint.categories, source=path)
    check_same_data(dataset, processes)
    detector = build_detector(config)
    load_weights(detector, checkpoint.best_weights, source=str(path))
    accelerate(detector.to(processes.device), config.runtime, device_type=processes.device.type)
    return dataset, detector


def evaluation_loader(data: DataConfig, dataset: CocoDetection, processes: Processes) -> ImageLoader:
    """A loader of this rank's share of the images."""
    return build_eval_loader(
        dataset,
        data,
        rank=processes.rank,
        world_size=processes.world_size,
        pin_memory=processes.device.type == "cuda",
    )


def under_progress(loader: ImageLoader, processes: Processes) -> Iterable[Batch]:
    """The batches, with a progress bar on rank 0."""
    return progress(loader, total=len(loader), description="evaluating", enabled=processes.is_main)


def evaluate(
    config: Config,
    detector: nn.Module,
    dataset: CocoDetection,
    processes: Processes,
    logger: RunLogger,
    folder: Path,
    *,
    step: int,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    dump: bool = False,
    record_starts: bool = False,
) -> Evaluation:
    """Evaluate on all processes, and report the result.

    watch           may stop it between batches
    dump            write the detections too
    record_starts   of the queries, for `engine.commands.analyze`
    """
    loader = evaluation_loader(config.data, dataset, processes)
    batches = watch(under_progress(loader, processes))
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    shown = gallery_indices(dataset.objects_per_image, config.evaluation.gallery_images, processes)
    picture_ids = frozenset(objects[i].image_id for i in shown)
    with worker_failures_named(loader):
        evaluation = evaluate_batches(
            config, detector, batches, objects, processes, picture_ids=picture_ids, record_starts=record_starts
        )
    if processes.is_main:
        show_evaluation(
            evaluation,
            objects=objects,
            class_names=dataset.categories,
            read_image=dataset.read_image,
            scores=config.evaluation.scores,
            score_threshold=config.evaluation.gallery_score,
            logger=logger,
            folder=folder,
            step=step,
        )
        if dump:
            protocol = get_protocol(config.evaluation.protocol, config.evaluation.max_detections)
            limit = protocol.max_detections[-1]
            dump_results(folder / "predictions.json", evaluation.predictions, dataset.table.category_ids, limit=limit)
    return evaluation


def evaluate_batches(
    config: Config,
    detector: nn.Module,
    batches: Iterable[Batch],
    objects: Sequence[GroundTruth],
    processes: Processes,
    *,
    picture_ids: frozenset[int] = frozenset(),
    record_starts: bool = False,
) -> Evaluation:
    """Predict the batches and compare with the objects, under the config's protocol; see `evaluate_detector`."""
    class_agnostic = config.model.class_agnostic_proposals
    predictions = predict_batches(
        detector,
        build_postprocess(config),
        batches,
        device=processes.device,
        amp=config.runtime.amp,
        record_queries=query_recorder(class_agnostic=class_agnostic) if record_starts else None,
    )
    return evaluate_detector(
        predictions,
        objects,
        num_classes=config.model.class_count,
        protocol=get_protocol(config.evaluation.protocol, config.evaluation.max_detections),
        processes=processes,
        picture_ids=picture_ids,
    )
