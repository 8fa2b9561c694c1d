"""What a run starts from: an earlier run, its data, its weights, room in memory."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs.paths import expand_path
from configs.schema import Config
from datasets.build import build_dataset
from datasets.checks import check_classes, check_query_limit, compare_splits
from datasets.coco import CocoDetection
from datasets.density import densest_shapes, mean_density
from datasets.findings import Findings
from datasets.images.cache import available_bytes
from datasets.images.same_files import Digests
from datasets.structures import DataError
from engine.checkpoints.checkpoint import CheckpointError, load_checkpoint, load_weights
from engine.checkpoints.folder_use import same_folder
from engine.checkpoints.run_folder import Resumption
from engine.commands.exit_codes import UsageError
from engine.commands.step_memory import estimate_training_step
from engine.distributed.processes import Processes, any_process, gather_lines, gather_rows, processes_that_differ
from engine.logger import RunLogger
from engine.memory import FIRST_USE, describe_room
from engine.train import AUTOCAST_TYPES
from engine.trainer import Trainer
from models.backbones.weights import WeightsError, load_backbone_weights
from models.build import build_detector
from ops.report import Choice, describe_backend, together


def require_same_start(start: Resumption | None, processes: Processes) -> None:
    """Raises CheckpointError unless all processes go on from the same step, or start afresh."""
    place = (-1, -1, -1)
    if start is not None:
        place = (start.checkpoint.epoch, start.checkpoint.batch, start.checkpoint.step)
    if len(gather_rows(torch.tensor([place]), processes).unique(dim=0)) > 1:
        raise CheckpointError("the processes read different checkpoints: give all of them the same file")


def open_data(config: Config, processes: Processes) -> tuple[CocoDetection, CocoDetection]:
    """The training and the validation split. Raises DataError."""
    training_set, validation_set = (
        build_dataset(
            config.data,
            training=training,
            seed=config.runtime.seed,
            num_classes=config.model.num_classes,
            processes_here=processes.world_size_here,
        )
        for training in (True, False)
    )
    for dataset in (training_set, validation_set):
        check_classes(dataset, config.model.num_classes)
        check_same_data(dataset, processes)
    return training_set, validation_set


def require_same_data(start: Resumption, training_set: CocoDetection) -> None:
    """Raises CheckpointError unless the run that goes on had these training data."""
    if start.checkpoint.data not in ("", training_set.fingerprint):
        raise CheckpointError(
            f"{start.path} is of a run on other training data than {training_set.table.path} holds now; undo the "
            "change, start a new run with init_from, or go on all the same by --allow-config-change"
        )


def check_same_data(dataset: CocoDetection, processes: Processes) -> None:
    """Raises DataError unless all processes read the same annotations."""
    if different := processes_that_differ(dataset.fingerprint, processes):
        raise DataError(
            f"{dataset.table.path}: {', '.join(map(processes.name, different))}: other annotations than "
            f"{processes.name(0)} has; give all machines the same data set"
        )


def compare_data(
    config: Config,
    training_set: CocoDetection,
    validation_set: CocoDetection,
    pixels: tuple[Digests, Digests] | None = None,
) -> Findings:
    """What is wrong with two splits that are each sound; pixels as in `compare_splits`."""
    findings = Findings()
    compare_splits(training_set, validation_set, findings, pixels)
    d3q = config.model.d3q
    limit = config.model.num_queries if d3q is None else d3q.max_queries or config.model.num_queries
    check_query_limit(training_set, limit, findings)
    return findings


def resolve_initial_density(config: Config, training_set: CocoDetection) -> Config:
    """For fresh weights: the density map starts at the mean density of the training set unless a number is given."""
    d3q = config.model.d3q
    if d3q is None or d3q.initial_density is not None:
        return config
    density = mean_density(training_set, config.data, stride=config.model.backbone.out_strides[0])
    return replace(config, model=replace(config.model, d3q=replace(d3q, initial_density=density)))


def starting_detector(config: Config, start: Resumption | None, processes: Processes) -> tuple[nn.Module, str]:
    """The detector on its device, and where its weights come from."""
    detector = build_detector(config)
    if start is None:
        origin = load_initial_weights(detector, config, processes)
    else:
        load_weights(detector, start.checkpoint.model, source="--resume")
        origin = str(start.path)
    return detector.to(processes.device), origin


def load_initial_weights(detector: nn.Module, config: Config, processes: Processes) -> str:
    """Weights of init_from, or of the backbone; says where they came from."""
    density = config.model.d3q and config.model.d3q.initial_density  # a check without training data knows none
    start = "" if density is None else f"; density {density:g} objects per cell"
    if config.init_from is not None:
        path = expand_path(config.init_from, "init_from")
        state = load_checkpoint(path).best_weights
        loaded = load_weights(detector, state, source=str(path), starts=True, reset=config.reset_head)
        kept = [f"initial values kept in {len(loaded.initial)} tensors"] if loaded.initial else []
        start = start if any(name.startswith("query_budget.") for name in loaded.initial) else ""
        return "; ".join([str(path), *kept, *loaded.describe_tables()]) + start
    backbone = config.model.backbone
    if backbone.weights is None:
        return f"random weights{start}"
    weights = str(expand_path(backbone.weights, "model.backbone.weights"))
    source, problem = "", None
    for first_here in (True, False):  # the first process of a machine downloads, the others find the file
        if (processes.rank_here == 0) == first_here:
            try:
                source = load_backbone_weights(detector.backbone, name=backbone.name, weights=weights)  # type: ignore[arg-type]
            except WeightsError as error:
                problem = error
        if any_process(problem is not None, processes):
            raise problem or WeightsError("another process has no weights for the backbone; see its message")
    return f"backbone {source}{start}"


def begin(trainer: Trainer, start: Resumption | None, folder: Path) -> None:
    """Resume where the checkpoint was taken, or start afresh; a branch of a run begins with records of its own."""
    branch = start is not None and not same_folder(folder, start.path.parent)
    if start is None or branch:
        trainer.logger.rewind(-1)  # of a run that ended before its first checkpoint
    if start is None:
        return
    if start.warning is not None:
        trainer.logger.say(start.warning)
    trainer.logger.say(
        f"{'branch of' if branch else 'resumed from'} {start.path}, {start.checkpoint.place}, in {folder}"
    )
    checkpoint = start.checkpoint
    if checkpoint.best_score >= 0 and not (folder / "best.pth").exists():
        trainer.logger.say(f"best.pth is not in {folder}: the best evaluation from here on will be")
        checkpoint = replace(checkpoint, best_score=-1.0)
    trainer.restore(checkpoint)


def attention_on(devices: Sequence[torch.device]) -> list[Choice]:
    """What computes deformable attention there. Raises UsageError where D3Q_OPS_BACKEND cannot run on one of them."""
    try:
        return together(map(describe_backend, devices))
    except ValueError as error:
        raise UsageError(str(error)) from None


def attention_lines(processes: Processes) -> list[str]:
    """What computes it on the devices of all processes, which all ask. Raises UsageError in all of them alike."""
    try:
        ours = json.dumps(attention_on([processes.device])[0])
    except UsageError as error:
        ours = json.dumps(str(error))
    every = [json.loads(line) for line in gather_lines(ours, processes)]
    if problem := next((each for each in every if isinstance(each, str)), None):
        raise UsageError(problem)
    return [f"deformable attention: {choice}" for choice in together(Choice(*each) for each in every)]


def announce_memory(config: Config, training_set: CocoDetection, processes: Processes, logger: RunLogger) -> None:
    """What a step on the densest images will need, before the first one; a warning where there is less."""
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
