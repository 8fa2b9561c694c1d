"""Runs, assembled from a config: every builder meets here, and nowhere else in the engine."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs.loader import ConfigError, dump_config, load_config, parse_config
from configs.schema import Config
from datasets.build import (
    build_dataset,
    build_eval_loader,
    build_train_loader,
    check_classes,
    check_trained_classes,
    densest_batch,
    mean_density,
)
from datasets.coco import CocoDetection
from datasets.image_cache import available_bytes
from datasets.structures import Batch, DataError
from engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_weights
from engine.detection_metrics import get_protocol
from engine.distributed import Processes, start_processes, stop_processes, wait_for_all
from engine.evaluate import evaluate_detector, predict_batches
from engine.interruption import Interrupted
from engine.logger import RunLogger, progress
from engine.memory import FIRST_USE, describe_room
from engine.optim import build_optimizer
from engine.run_folder import Resumption, RunFolder, RunFolderError
from engine.showcase import gallery_indices, show_evaluation
from engine.train import AUTOCAST_TYPES, NonFiniteLossError
from engine.trainer import Trainer, announce
from models.backbone_weights import WeightsError, load_backbone_weights
from models.build import (
    build_criterion,
    build_detector,
    build_postprocess,
    estimate_training_step,
    fill_input_statistics,
)
from models.matcher import NonFiniteCostError

EXIT_CODES: dict[type[Exception], int] = {
    ConfigError: 2,
    RunFolderError: 2,
    DataError: 3,
    CheckpointError: 4,
    WeightsError: 4,
    NonFiniteLossError: 5,
    NonFiniteCostError: 5,
    Interrupted: 75,
}


class UsageError(ConfigError):
    """Arguments that do not go together."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def exit_code(work: Callable[[], object], codes: Mapping[type[Exception], int]) -> int:
    """0, or after one of the errors of `codes`, whose message is printed, its code."""
    try:
        work()
    except tuple(codes) as error:
        message = error.summary() if isinstance(error, DataError) else str(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return next(code for kind, code in codes.items() if isinstance(error, kind))
    finally:
        stop_processes()
    return 0


def resolve_config(
    overrides: Sequence[str], *, file: Path | None, resume: Path | None, checkpoint: Checkpoint | None
) -> Config:
    """The file's or the checkpoint's config with overrides, and with everything that follows from it filled in."""
    if file is not None:
        config = load_config(file, overrides)
        name = file.stem
    else:
        assert resume is not None
        assert checkpoint is not None
        config = parse_config(checkpoint.config, f"{resume} (config)", overrides)
        name = resume.parent.name
    config = fill_input_statistics(config)
    if config.runtime.output_dir is None:
        config = replace(config, runtime=replace(config.runtime, output_dir=f"runs/{name}"))
    return config


def start_runtime(config: Config) -> Processes:
    """Processes, threads and seed."""
    try:
        processes = start_processes(config.runtime.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.runtime.num_threads:
        torch.set_num_threads(config.runtime.num_threads)
    torch.manual_seed(config.runtime.seed)
    return processes


def train(config: Config, start: Resumption | None, processes: Processes) -> None:
    """Train to the last epoch, evaluating and saving on the way."""
    data, runtime = config.data, config.runtime
    checkpoint = start.checkpoint if start is not None else None
    folder = Path(str(runtime.output_dir))
    if checkpoint is None and any(folder.glob("last*.pth")):
        raise UsageError(
            f"{folder} already holds a run: go on with it by --resume {folder / 'last.pth'}, choose another "
            "runtime.output_dir, or remove it"
        )
    training_set, validation_set = (
        build_dataset(data, training=training, seed=runtime.seed, processes_here=processes.world_size_here)
        for training in (True, False)
    )
    for dataset in (training_set, validation_set):
        check_classes(dataset, config.model.num_classes)
    if checkpoint is None:
        config = resolve_initial_density(config, training_set)
    detector = build_detector(config)
    if checkpoint is None:
        origin = load_initial_weights(detector, config, processes)
    else:
        load_weights(detector, checkpoint.model, source="--resume")
        origin = f"the checkpoint of epoch {checkpoint.epoch}"
    detector.to(processes.device)
    loader = build_train_loader(
        training_set,
        data,
        rank=processes.rank,
        world_size=processes.world_size,
        seed=runtime.seed,
        pin_memory=processes.device.type == "cuda",
    )
    resumed = start.path if start is not None else None
    with (
        RunFolder(folder, processes, keep=runtime.keep_checkpoints, resumed=resumed, codes=EXIT_CODES) as run_folder,
        RunLogger(folder, is_main=processes.is_main) as logger,
    ):
        if start is not None and start.warning is not None:
            logger.say(start.warning)
        trainer = Trainer(
            detector=detector,
            criterion=build_criterion(config),
            optimizer=build_optimizer(detector, config.optim),
            loader=loader,
            evaluate=lambda step: evaluate(
                config, detector, validation_set, processes, logger, folder / "evaluation", step=step
            ),
            config=config,
            categories=training_set.categories,
            processes=processes,
            logger=logger,
            run_folder=run_folder,
        )
        if checkpoint is None:
            logger.rewind(-1)  # of a run that ended before its first checkpoint
        else:
            trainer.restore(checkpoint)
        left_out = training_set.dropped | training_set.skipped
        data_line = f"{training_set.statistics()}" + (f"; left out: {left_out}" if left_out else "")
        announce(logger, config, detector=detector, processes=processes, origin=origin, data=data_line)
        if processes.is_main:
            announce_memory(config, training_set, processes, logger)
            (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        trainer.fit()
        logger.say(f"done: {folder} holds best.pth, last.pth, metrics.jsonl, log.txt, evaluation and tensorboard")


def announce_memory(config: Config, training_set: CocoDetection, processes: Processes, logger: RunLogger) -> None:
    """What a step on the densest images will need, before the first one; a warning where there is less."""
    device = processes.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    if free is None:
        return
    size, objects = densest_batch(training_set, config.data)
    memory = estimate_training_step(
        config,
        size=size,
        objects=objects,
        device_type=device.type,
        autocast=AUTOCAST_TYPES.get(config.runtime.amp),
    )
    needed = memory.peak - memory.weights + (memory.trained if processes.world_size > 1 else 0)  # reduction buffers
    if device.type == "cpu":
        free, needed = free // processes.world_size_here, needed + FIRST_USE
    batch = f"the densest {len(objects)} image(s) ({size[1]}x{size[0]} px, up to {max(objects)} objects)"
    logger.say(describe_room(needed=needed, free=free, batch=batch))


def evaluate_checkpoint(config: Config, checkpoint: Checkpoint, path: Path, processes: Processes) -> None:
    """Evaluate the validation split of the config; results go beside the checkpoint."""
    dataset, detector = build_trained(config, checkpoint, path, processes)
    folder = path.parent / f"evaluation_{path.stem}"
    with RunLogger(folder, is_main=processes.is_main) as logger:
        logger.say(f"{path}: epoch {checkpoint.epoch}, step {checkpoint.step}")
        evaluate(config, detector, dataset, processes, logger, folder, step=checkpoint.step)
        logger.say(f"done: {folder} holds the report and the gallery")


def build_trained(
    config: Config, checkpoint: Checkpoint, path: Path, processes: Processes
) -> tuple[CocoDetection, nn.Module]:
    """The validation split of the config, and the detector with the checkpoint's weights."""
    dataset = build_dataset(
        config.data, training=False, seed=config.runtime.seed, processes_here=processes.world_size_here
    )
    check_trained_classes(dataset, checkpoint.categories, source=path)
    detector = build_detector(config)
    load_weights(detector, checkpoint.model, source=str(path))
    return dataset, detector.to(processes.device)


def evaluation_batches(config: Config, dataset: CocoDetection, processes: Processes) -> Iterable[Batch]:
    """This process's share of the images, under a progress bar."""
    loader = build_eval_loader(
        dataset,
        config.data,
        rank=processes.rank,
        world_size=processes.world_size,
        pin_memory=processes.device.type == "cuda",
    )
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
) -> float:
    """Evaluate on all processes and show the result; returns the mean AP."""
    batches = evaluation_batches(config, dataset, processes)
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    shown = gallery_indices(dataset.objects_per_image, config.evaluation.gallery_images, processes)
    evaluation = evaluate_detector(
        predict_batches(detector, build_postprocess(config), batches, device=processes.device, amp=config.runtime.amp),
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


def resolve_initial_density(config: Config, training_set: CocoDetection) -> Config:
    """For fresh weights: the density map starts at the mean density of the training set unless a number is given."""
    d3q = config.model.d3q
    if d3q is None or d3q.initial_density is not None:
        return config
    density = mean_density(training_set, config.data, stride=config.model.backbone.out_strides[0])
    return replace(config, model=replace(config.model, d3q=replace(d3q, initial_density=density)))


def load_initial_weights(detector: nn.Module, config: Config, processes: Processes) -> str:
    """Weights of init_from, or of the backbone; says where they came from."""
    start = "" if config.model.d3q is None else f"; density {config.model.d3q.initial_density:g} objects per cell"
    if config.init_from is not None:
        state = load_checkpoint(Path(config.init_from)).model
        kept = load_weights(detector, state, source=config.init_from, reset=config.reset_head)
        start = start if any(name.startswith("query_budget.") for name in kept) else ""
        return f"{config.init_from}{f'; initial values kept in {len(kept)} tensors' if kept else ''}{start}"
    backbone = config.model.backbone
    if backbone.weights is None:
        return f"random weights{start}"
    if not processes.is_main:
        wait_for_all(processes)  # the main process downloads
    source = load_backbone_weights(detector.backbone, name=backbone.name, weights=backbone.weights)  # type: ignore[arg-type]
    if processes.is_main:
        wait_for_all(processes)
    return f"backbone {source}{start}"
