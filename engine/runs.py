"""Runs, assembled from a config: every builder meets here, and nowhere else in the engine."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs.compare import harmful_differences
from configs.loader import ConfigError, dump_config, load_config, parse_config
from configs.schema import Config
from datasets.build import (
    build_dataset,
    build_eval_loader,
    build_train_loader,
    check_classes,
    check_query_limit,
    check_trained_classes,
    compare_splits,
    densest_shapes,
    mean_density,
)
from datasets.coco import CocoDetection
from datasets.findings import Findings
from datasets.image_cache import available_bytes
from datasets.loading import worker_failures_named
from datasets.structures import Batch, DataError
from engine.acceleration import accelerate
from engine.averaging import WeightAverage
from engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_weights
from engine.closing import closing_report
from engine.detection_metrics import get_protocol
from engine.determinism import GPU_NOTICE, determinism
from engine.distributed import (
    Processes,
    StartError,
    any_process,
    gather_rows,
    processes_that_differ,
    start_processes,
    stop_processes,
)
from engine.evaluate import evaluate_detector, predict_batches
from engine.hang_watch import HangError
from engine.interruption import Interrupted, StopRequest
from engine.logger import RunLogger, progress
from engine.memory import FIRST_USE, describe_room
from engine.optim import build_optimizer
from engine.run_folder import Resumption, RunFolder, RunFolderError
from engine.showcase import gallery_indices, show_evaluation
from engine.step_failures import NonFiniteLossError, StepMemoryError
from engine.train import AUTOCAST_TYPES
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
    StartError: 2,
    RunFolderError: 2,
    DataError: 3,
    CheckpointError: 4,
    WeightsError: 4,
    NonFiniteLossError: 5,
    NonFiniteCostError: 5,
    StepMemoryError: 6,
    torch.OutOfMemoryError: 6,
    MemoryError: 6,
    HangError: 1,
    Interrupted: 75,
}


class UsageError(ConfigError):
    """Arguments that do not go together."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def exit_code(work: Callable[[], object], codes: Mapping[type[Exception], int]) -> int:
    """The int that the work returns, or 0; after one of the errors of `codes`, whose message is printed, its code."""
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except tuple(codes) as error:
        message = error.summary() if isinstance(error, DataError) else str(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return next(code for kind, code in codes.items() if isinstance(error, kind))
    finally:
        stop_processes()


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


def find_last(config: Config) -> Path | None:
    """last.pth of the run folder, which may be damaged or gone, where the folder holds a checkpoint of a run."""
    folder = Path(str(config.runtime.output_dir))
    return folder / "last.pth" if any(folder.glob("last*.pth")) else None


def continue_config(config: Config, checkpoint: Checkpoint, path: Path, *, allow_change: bool) -> Config:
    """The config with what the checkpoint's run took from its data.

    Raises UsageError unless it makes the same training of it, or is allowed not to.
    """
    earlier = fill_input_statistics(parse_config(checkpoint.config, f"{path} (config)"))
    ours, theirs = config.model.d3q, earlier.model.d3q
    if ours is not None and theirs is not None and ours.initial_density is None:
        d3q = replace(ours, initial_density=theirs.initial_density)
        config = replace(config, model=replace(config.model, d3q=d3q))
    if not allow_change and (differences := harmful_differences(config, earlier)):
        raise UsageError(
            f"{path} is of another config; undo the change, set another runtime.output_dir, or go on with it all the "
            "same by --allow-config-change:\n" + "\n".join(differences)
        )
    return config


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


def train(config: Config, start: Resumption | None, processes: Processes) -> None:
    """Train to the last epoch, evaluating and saving on the way."""
    runtime, folder = config.runtime, Path(str(config.runtime.output_dir))
    require_same_start(start, processes)
    if start is None:
        refuse_used(folder)
    training_set, validation_set = open_data(config, processes)
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
        RunFolder(folder, processes, keep=runtime.keep_checkpoints, resumed=resumed, codes=EXIT_CODES) as run_folder,
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
            processes=processes,
            logger=logger,
            run_folder=run_folder,
            stop=stop,
        )
        begin(trainer, start)
        if runtime.deterministic and processes.device.type == "cuda":
            logger.say(GPU_NOTICE)
        left_out = training_set.dropped | training_set.skipped
        data_line = "\n".join([str(training_set.statistics()), *training_set.remarks()])
        announce(logger, config, detector=detector, processes=processes, origin=origin, data=data_line)
        for warning in remarks.messages("warning"):
            logger.say(f"warning: {warning}")
        if processes.is_main:
            announce_memory(config, training_set, processes, logger)
            (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        trainer.fit()
        logger.say(closing_report(folder, trainer.progress, left_out=left_out))


def open_data(config: Config, processes: Processes) -> tuple[CocoDetection, CocoDetection]:
    """The training and the validation split. Raises DataError."""
    training_set, validation_set = (
        build_dataset(
            config.data, training=training, seed=config.runtime.seed, processes_here=processes.world_size_here
        )
        for training in (True, False)
    )
    for dataset in (training_set, validation_set):
        check_classes(dataset, config.model.num_classes)
        check_same_data(dataset, processes)
    return training_set, validation_set


def starting_detector(config: Config, start: Resumption | None, processes: Processes) -> tuple[nn.Module, str]:
    """The detector on its device, and where its weights come from."""
    detector = build_detector(config)
    if start is None:
        origin = load_initial_weights(detector, config, processes)
    else:
        load_weights(detector, start.checkpoint.model, source="--resume")
        origin = f"the checkpoint of epoch {start.checkpoint.epoch}"
    return detector.to(processes.device), origin


def begin(trainer: Trainer, start: Resumption | None) -> None:
    """Go on where the checkpoint was taken, or afresh."""
    if start is None:
        trainer.logger.rewind(-1)  # of a run that ended before its first checkpoint
        return
    if start.warning is not None:
        trainer.logger.say(start.warning)
    trainer.restore(start.checkpoint)


def require_same_start(start: Resumption | None, processes: Processes) -> None:
    """Raises CheckpointError unless all processes go on from the same step, or start afresh."""
    place = (-1, -1, -1)
    if start is not None:
        place = (start.checkpoint.epoch, start.checkpoint.batch, start.checkpoint.step)
    if len(gather_rows(torch.tensor([place]), processes).unique(dim=0)) > 1:
        raise CheckpointError("the processes read different checkpoints: give all of them the same file")


def refuse_used(folder: Path) -> None:
    """Raises UsageError for a folder with checkpoints, which a new run would overwrite."""
    if any(folder.glob("last*.pth")):
        raise UsageError(
            f"{folder} already holds a run: go on with it by --resume {folder / 'last.pth'}, choose another "
            "runtime.output_dir, or remove it"
        )


def compare_data(config: Config, training_set: CocoDetection, validation_set: CocoDetection) -> Findings:
    """What is wrong with two splits that are each sound."""
    findings = Findings()
    compare_splits(training_set, validation_set, findings)
    d3q = config.model.d3q
    limit = config.model.num_queries if d3q is None else d3q.max_queries or config.model.num_queries
    check_query_limit(training_set, limit, findings)
    return findings


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
    check_same_data(dataset, processes)
    detector = build_detector(config)
    load_weights(detector, checkpoint.best_weights, source=str(path))
    accelerate(detector.to(processes.device), config.runtime, device_type=processes.device.type)
    return dataset, detector


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
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> float:
    """Evaluate on all processes and show the result; returns the mean AP. `watch` may end it between batches."""
    batches = watch(evaluation_batches(config, dataset, processes))
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


def check_same_data(dataset: CocoDetection, processes: Processes) -> None:
    """Raises DataError unless all processes read the same annotations."""
    if different := processes_that_differ(dataset.fingerprint(), processes):
        raise DataError(
            f"{dataset.table.path}: {', '.join(map(processes.name, different))}: other annotations than "
            f"{processes.name(0)} has; give all machines the same data set"
        )


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
        state = load_checkpoint(Path(config.init_from)).best_weights
        kept = load_weights(detector, state, source=config.init_from, reset=config.reset_head)
        start = start if any(name.startswith("query_budget.") for name in kept) else ""
        return f"{config.init_from}{f'; initial values kept in {len(kept)} tensors' if kept else ''}{start}"
    backbone = config.model.backbone
    if backbone.weights is None:
        return f"random weights{start}"
    source, problem = "", None
    for first_here in (True, False):  # the first process of a machine downloads, the others find the file
        if (processes.rank_here == 0) == first_here:
            try:
                source = load_backbone_weights(detector.backbone, name=backbone.name, weights=backbone.weights)  # type: ignore[arg-type]
            except WeightsError as error:
                problem = error
        if any_process(problem is not None, processes):
            raise problem or WeightsError("another process has no weights for the backbone; see its message")
    return f"backbone {source}{start}"
