"""What a run starts from: processes, an earlier run, its data, its weights, free memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from configs.loader import dump_config
from configs.schema import Config, ModelConfig
from datasets.build import build_dataset
from datasets.checks import check_classes, check_query_limit, compare_splits
from datasets.coco import CocoDetection
from datasets.density import densest_shapes, mean_density
from datasets.findings import Findings
from datasets.images.cache import available_bytes
from datasets.images.duplicates import Digests
from datasets.structures import DataError
from engine.checkpoints.checkpoint import CheckpointError, load_weights
from engine.checkpoints.folder_use import same_folder
from engine.checkpoints.run_folder import Resumption
from engine.commands.exit_codes import UsageError
from engine.commands.initial_weights import load_initial_weights
from engine.commands.step_memory import estimate_training_step
from engine.distributed.processes import (
    Processes,
    gather_lines,
    gather_rows,
    processes_that_differ,
    start_processes,
)
from engine.distributed.rendezvous import StartError
from engine.logger import RunLogger
from engine.optim import WeightAverage
from engine.runtime import FIRST_USE, accelerate, describe_room
from engine.train import AUTOCAST_TYPES
from engine.trainer import Trainer
from models.build import build_detector
from ops.report import Choice, describe_backend, together


@dataclass(frozen=True)
class Splits:
    """The data of a training."""

    training: CocoDetection
    validation: CocoDetection
    findings: Findings
    """Of the comparison of both"""


@dataclass(frozen=True)
class StartingModel:
    """The detector on its device, with the weights that the training starts from."""

    detector: nn.Module
    average: WeightAverage | None
    origin: str
    """Where the weights come from"""

    @property
    def evaluated(self) -> nn.Module:
        """The detector that evaluations use."""
        return self.detector if self.average is None else self.average.detector


def start_runtime(config: Config) -> Processes:
    """Start the process group and set threads and seed. Raises StartError, also for processes with other configs."""
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


def require_same_start(start: Resumption | None, processes: Processes) -> None:
    """Raises CheckpointError unless all processes resume from the same step, or none resumes."""
    place = (-1, -1, -1)
    if start is not None:
        place = start.checkpoint.progress.position
    if len(gather_rows(torch.tensor([place]), processes).unique(dim=0)) > 1:
        raise CheckpointError("the processes read different checkpoints: give all of them the same file")


def open_splits(config: Config, processes: Processes) -> Splits:
    """The training and the validation split, each checked; what their comparison found is not raised yet.

    Raises DataError.
    """
    training = open_split(config, processes, training=True)
    config = resolve_classes(config, training)
    validation = open_split(config, processes, training=False)
    for dataset in (training, validation):
        check_classes(dataset, config.model.class_count)
        check_same_data(dataset, processes)
    return Splits(training, validation, compare_data(config.model, training, validation))


def open_split(
    config: Config, processes: Processes, *, training: bool, findings: Findings | None = None
) -> CocoDetection:
    """One split. Raises DataError for what is wrong with it; with `findings` errors are collected there."""
    return build_dataset(
        config.data,
        training=training,
        seed=config.runtime.seed,
        num_classes=config.model.num_classes,
        processes_here=processes.world_size_here,
        findings=findings,
    )


def require_same_data(start: Resumption, training_set: CocoDetection) -> None:
    """Raises CheckpointError unless the run to resume had these training data."""
    if start.checkpoint.data not in ("", training_set.fingerprint):
        raise CheckpointError(
            f"{start.path} is of a run on other training data than {training_set.table.path} holds now; undo the "
            "change, start a new run with init_from, or resume with --allow-config-change"
        )


def check_same_data(dataset: CocoDetection, processes: Processes) -> None:
    """Raises DataError unless all processes read the same annotations."""
    if different := processes_that_differ(dataset.fingerprint, processes):
        raise DataError(
            f"{dataset.table.path}: {', '.join(map(processes.name, different))}: other annotations than "
            f"{processes.name(0)} has; give all machines the same data set"
        )


def compare_data(
    model: ModelConfig,
    training_set: CocoDetection,
    validation_set: CocoDetection,
    pixels: tuple[Digests, Digests] | None = None,
) -> Findings:
    """What is wrong with two splits that are each valid; pixels as in `compare_splits`."""
    findings = Findings()
    compare_splits(training_set, validation_set, findings, pixels)
    limit = model.num_queries if model.d3q is None else model.d3q.max_queries or model.num_queries
    check_query_limit(training_set, limit, findings)
    return findings


def resolve_from_data(config: Config, start: Resumption | None, training_set: CocoDetection) -> Config:
    """The config with what follows from the training data, resolved once: a resumed run has it already.

    model.num_classes is the number of its classes, and model.d3q.initial_density its mean density, unless a number is
    given.
    """
    config = resolve_classes(config, training_set)
    d3q = config.model.d3q
    if start is not None or d3q is None or d3q.initial_density is not None:
        return config
    density = mean_density(training_set, config.data, stride=config.model.backbone.out_strides[0])
    return replace(config, model=replace(config.model, d3q=replace(d3q, initial_density=density)))


def resolve_classes(config: Config, dataset: CocoDetection) -> Config:
    """The config with the data set's number of classes, unless a number is given."""
    if config.model.num_classes is not None:
        return config
    return replace(config, model=replace(config.model, num_classes=len(dataset.categories)))


def starting_model(
    config: Config, start: Resumption | None, classes: Sequence[str], processes: Processes
) -> StartingModel:
    """Build the detector and load the weights that the training starts from.

    classes   names of those of the training data
    """
    detector = build_detector(config)
    if start is None:
        origin = load_initial_weights(detector, config, processes, classes)
    else:
        load_weights(detector, start.checkpoint.model, source="--resume")
        origin = str(start.path)
    detector.to(processes.device)
    average = WeightAverage(detector, decay=config.optim.ema_decay) if config.optim.ema_decay > 0 else None
    model = StartingModel(detector, average, origin)
    for module in {model.detector, model.evaluated}:
        accelerate(module, config.runtime, device_type=processes.device.type)
    return model


def begin(trainer: Trainer, start: Resumption | None, folder: Path) -> None:
    """Resume where the checkpoint was saved, or start a new run; a branch of a run starts its own records."""
    branch = start is not None and not same_folder(folder, start.path.parent)
    if start is None or branch:
        trainer.logger.rewind(-1)  # records of a run that ended before its first checkpoint
    if start is None:
        return
    if start.warning is not None:
        trainer.logger.say(start.warning)
    trainer.logger.say(
        f"{'branch of' if branch else 'resumed from'} {start.path}, {start.checkpoint.progress}, in {folder}"
    )
    checkpoint, progress = start.checkpoint, start.checkpoint.progress
    if progress.best_score >= 0 and not (folder / "best.pth").exists():
        trainer.logger.say(f"best.pth is not in {folder}: the best evaluation from now on will be saved there")
        checkpoint = replace(checkpoint, progress=replace(progress, best_score=-1.0))
    trainer.restore(checkpoint)


def attention_on(devices: Sequence[torch.device]) -> list[Choice]:
    """Which backend computes deformable attention. Raises UsageError if D3Q_OPS_BACKEND cannot run on a device."""
    try:
        return together(map(describe_backend, devices))
    except ValueError as error:
        raise UsageError(str(error)) from None


def attention_lines(processes: Processes) -> list[str]:
    """The backends on the devices of all processes; call it on every rank. Raises UsageError on all ranks alike."""
    try:
        ours = json.dumps(attention_on([processes.device])[0])
    except UsageError as error:
        ours = json.dumps(str(error))
    every = [json.loads(line) for line in gather_lines(ours, processes)]
    if problem := next((each for each in every if isinstance(each, str)), None):
        raise UsageError(problem)
    return [f"deformable attention: {choice}" for choice in together(Choice(*each) for each in every)]


def announce_memory(config: Config, training_set: CocoDetection, processes: Processes, logger: RunLogger) -> None:
    """Log the memory that a step on the densest images needs; a warning if less is free."""
    device = processes.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    if free is None:
        return
    size, objects = densest_shapes(training_set, config.data)
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
