"""A training and an evaluation, assembled from a config."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from configs.loader import dump_config
from configs.paths import expand_path
from configs.schema import Config
from datasets.build import build_dataset, build_eval_loader, build_train_loader
from datasets.checks import check_trained_classes
from datasets.coco import CocoDetection
from datasets.loading import ImageLoader, worker_failures_named
from datasets.structures import Batch
from engine.acceleration import accelerate
from engine.averaging import WeightAverage
from engine.checkpoints.checkpoint import Checkpoint, load_weights
from engine.checkpoints.folder_use import open_evaluation, require_folder
from engine.checkpoints.run_folder import Resumption, RunFolder
from engine.commands.exit_codes import expected_errors
from engine.commands.setup import (
    announce_memory,
    attention_lines,
    begin,
    check_same_data,
    compare_data,
    open_data,
    require_same_data,
    require_same_start,
    resolve_initial_density,
    starting_detector,
)
from engine.commands.summary import closing_report
from engine.determinism import GPU_NOTICE, determinism
from engine.distributed.processes import Processes, StartError, processes_that_differ, start_processes
from engine.distributed.signals import StopRequest
from engine.evaluation.artifacts import gallery_indices, show_evaluation
from engine.evaluation.evaluate import evaluate_detector, predict_batches
from engine.logger import RunLogger, naming, progress
from engine.metrics.average_precision import get_protocol
from engine.optim import build_optimizer
from engine.trainer import Trainer, announce
from models.build import build_criterion, build_detector, build_postprocess


def start_runtime(config: Config) -> Processes:
    """Processes that have the same config, threads and seed. Raises StartError."""
    runtime = config.runtime
    processes = start_processes(runtime.device, start_timeout=runtime.start_timeout, hang_timeout=runtime.hang_timeout)
    if different := processes_that_differ(dump_config(config), processes):
        raise StartError(
            f"{', '.join(map(processes.name, different))}: another config than {processes.name(0)} has; give all "
            "machines the same files and arguments (--print-config shows the result)"
        )
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    torch.manual_seed(runtime.seed)
    return processes


def train(config: Config, start: Resumption | None, processes: Processes, *, allow_other_data: bool = False) -> None:
    """Train to the last epoch, evaluating and saving on the way.

    allow_other_data   go on with a checkpoint of a run on other training data
    """
    runtime, folder = config.runtime, expand_path(str(config.runtime.output_dir), "runtime.output_dir")
    require_same_start(start, processes)
    require_folder(folder, start, processes)
    training_set, validation_set = open_data(config, processes)
    if start is not None and not allow_other_data:
        require_same_data(start, training_set)
    remarks = compare_data(config, training_set, validation_set)
    remarks.raise_errors()
    if start is None:
        config = resolve_initial_density(config, training_set)
    detector, origin = starting_detector(config, start, processes)
    average = WeightAverage(detector, decay=config.optim.ema_decay) if config.optim.ema_decay > 0 else None
    evaluated = detector if average is None else average.detector
    for module in {detector, evaluated}:
        accelerate(module, runtime, device_type=processes.device.type)
    loader = build_train_loader(
        training_set,
        config.data,
        rank=processes.rank,
        world_size=processes.world_size,
        seed=runtime.seed,
        pin_memory=processes.device.type == "cuda",
    )
    resumed = start.path if start is not None else None
    with (
        RunFolder(
            folder, processes, keep=runtime.keep_checkpoints, resumed=resumed, codes=expected_errors()
        ) as run_folder,
        RunLogger(folder, is_main=processes.is_main) as logger,
        determinism(processes.device, wanted=runtime.deterministic),
        worker_failures_named(loader),
    ):
        stop = StopRequest(processes, remedy=f"go on with --resume {run_folder.last}")
        results = folder / "evaluation"
        trainer = Trainer(
            detector=detector,
            criterion=build_criterion(config),
            average=average,
            optimizer=build_optimizer(detector, config.optim),
            loader=loader,
            evaluate=lambda step: evaluate(
                config, evaluated, validation_set, processes, logger, results, step=step, watch=stop.watched
            ),
            config=config,
            categories=training_set.categories,
            data=training_set.fingerprint,
            processes=processes,
            logger=logger,
            run_folder=run_folder,
            stop=stop,
        )
        begin(trainer, start, folder)
        if runtime.deterministic and processes.device.type == "cuda":
            logger.say(GPU_NOTICE)
        left_out = training_set.dropped | training_set.skipped
        data_line = "\n".join([str(training_set.statistics()), *training_set.remarks()])
        announce(logger, config, detector=detector, processes=processes, origin=origin, data=data_line)
        for line in attention_lines(processes):
            logger.say(line)
        for warning in remarks.messages("warning"):
            logger.say(f"warning: {warning}")
        if processes.is_main:
            announce_memory(config, training_set, processes, logger)
            with naming(folder / "config.yaml"):
                (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        trainer.fit()
        logger.say(closing_report(folder, trainer.progress, left_out=left_out))


def evaluate_checkpoint(config: Config, checkpoint: Checkpoint, path: Path, processes: Processes) -> None:
    """Evaluate the validation split of the config; results go into a folder of their own: see `open_evaluation`."""
    named = config.runtime.output_dir
    dataset, detector = build_trained(config, checkpoint, path, processes)
    folder = open_evaluation(path, None if named is None else expand_path(named, "runtime.output_dir"), processes)
    with RunLogger(folder, is_main=processes.is_main) as logger:
        logger.say(f"{path}: {checkpoint.place}")
        for line in attention_lines(processes):
            logger.say(line)
        evaluate(config, detector, dataset, processes, logger, folder, step=checkpoint.step)
        logger.say(f"done: {folder} holds the report and the gallery")


def build_trained(
    config: Config, checkpoint: Checkpoint, path: Path, processes: Processes
) -> tuple[CocoDetection, nn.Module]:
    """The validation split of the config, and the detector with the checkpoint's weights."""
    dataset = build_dataset(
        config.data,
        training=False,
        seed=config.runtime.seed,
        num_classes=config.model.num_classes,
        processes_here=processes.world_size_here,
    )
    check_trained_classes(dataset, checkpoint.categories, source=path)
    check_same_data(dataset, processes)
    detector = build_detector(config)
    load_weights(detector, checkpoint.best_weights, source=str(path))
    accelerate(detector.to(processes.device), config.runtime, device_type=processes.device.type)
    return dataset, detector


def evaluation_loader(config: Config, dataset: CocoDetection, processes: Processes) -> ImageLoader:
    """This process's share of the images."""
    return build_eval_loader(
        dataset,
        config.data,
        rank=processes.rank,
        world_size=processes.world_size,
        pin_memory=processes.device.type == "cuda",
    )


def under_progress(loader: ImageLoader, processes: Processes) -> Iterable[Batch]:
    """The batches, counted on the terminal of process 0."""
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
) -> float:
    """Evaluate on all processes and show the result; returns the mean AP. `watch` may end it between batches."""
    loader = evaluation_loader(config, dataset, processes)
    batches = watch(under_progress(loader, processes))
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    shown = gallery_indices(dataset.objects_per_image, config.evaluation.gallery_images, processes)
    postprocess, device = build_postprocess(config), processes.device
    with worker_failures_named(loader):
        evaluation = evaluate_detector(
            predict_batches(detector, postprocess, batches, device=device, amp=config.runtime.amp),
            objects,
            num_classes=config.model.num_classes,
            protocol=get_protocol(config.evaluation.protocol, config.evaluation.max_detections),
            processes=processes,
            picture_ids=frozenset(objects[i].image_id for i in shown),
        )
    if processes.is_main:
        show_evaluation(
            evaluation,
            objects=objects,
            class_names=dataset.categories,
            read_image=dataset.read_image,
            score_threshold=config.evaluation.gallery_score,
            logger=logger,
            folder=folder,
            step=step,
        )
    return max(evaluation.metrics.summary()["mAP"], 0.0)
