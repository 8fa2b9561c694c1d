"""--check: what a training would need, from its config, without training."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from configs.paths import expand_path
from configs.schema import Config, DataConfig
from datasets.build import open_root
from datasets.checks import check_classes, check_images
from datasets.coco import CocoDetection
from datasets.density import densest_batch
from datasets.findings import Findings
from datasets.statistics import describe_scaled
from datasets.structures import Batch, DataError
from engine.checkpoints.checkpoint import CheckpointError, load_weights
from engine.checkpoints.folder_use import require_folder
from engine.checkpoints.run_folder import Resumption, RunFolderError, lacking_space
from engine.commands.exit_codes import UsageError, expected_errors
from engine.commands.initial_weights import load_initial_weights
from engine.commands.preflight import Part, Preflight, TrialError, try_step
from engine.commands.setup import (
    attention_on,
    compare_data,
    open_split,
    resolve_classes,
    resolve_from_data,
)
from engine.distributed.processes import Processes
from engine.optim import build_optimizer
from engine.trainer import checkpoint_bytes
from engine.wording import counted
from models.build import build_criterion, build_detector
from ops.report import devices_here

Start = Resumption | CheckpointError | None
"""--resume: a checkpoint, the error of loading it, or nothing"""


def check(config: Config, start: Start, processes: Processes, *, full: bool) -> int:
    """Check everything that a training needs, and try its densest step; returns the exit code.

    full   decode every image, instead of reading its header
    """
    if processes.world_size > 1:
        raise UsageError("--check is for one process: start it without torchrun")
    # A cache would decode every image; that is for --check-full.
    config = replace(config, data=replace(config.data, cache_images="none"))
    folder = expand_path(str(config.runtime.output_dir), "runtime.output_dir")
    codes = expected_errors()
    preflight = Preflight(folder, codes={**codes, TrialError: 1}, finding_code=codes[DataError])
    splits = _check_data(config, processes, preflight, full=full)
    training_set = next((split for split in splits if split.training), None)
    if training_set is not None:
        config = resolve_from_data(config, start if isinstance(start, Resumption) else None, training_set)
    if config.model.num_classes is None:  # no data to take it from, which is an error already, and so no detector
        return preflight.close()
    detector = build_detector(config)
    with preflight.part("weights") as part:
        classes = splits[0].categories if splits else ()
        part.say(_load_weights(config, start, detector, classes, processes))
    with preflight.part("deformable attention") as part:
        part.say("\n".join(map(str, attention_on(devices_here(processes.device)))))
    with preflight.part("one training step") as part:
        batch = None if training_set is None else _densest_batch(config.data, training_set, skip=preflight.failed)
        if training_set is None or batch is None:
            part.say("not tried, without training data")
        else:
            _try_steps(config, detector, batch, processes, part, images=len(training_set))
    with preflight.part("disk") as part:
        needed = checkpoint_bytes(detector, averaged=config.optim.ema_decay > 0)
        if not isinstance(start, CheckpointError):
            require_folder(folder, start, processes)
        if problem := lacking_space(folder, needed, keep=config.runtime.keep_checkpoints):
            raise RunFolderError(problem)
        part.say(f"room for {config.runtime.keep_checkpoints + 2} checkpoints of {needed / 1e6:.0f} MB in {folder}")
    return preflight.close()


def _check_data(config: Config, processes: Processes, preflight: Preflight, *, full: bool) -> Sequence[CocoDetection]:
    """Check the data; returns the splits that can be opened."""
    splits: list[CocoDetection] = []
    with preflight.part("data root") as part:
        part.say(str(open_root(config.data)))
    if preflight.failed:
        return splits
    for training in (True, False):
        name = "training" if training else "evaluation"
        findings = Findings()
        with preflight.part(f"{name} data", findings) as part:
            try:
                dataset = open_split(config, processes, training=training, findings=findings)
            except DataError:
                if not findings.counts("error"):
                    raise
                part.say("nothing is left without errors")
                continue
            splits.append(dataset)
            scaled = describe_scaled(dataset.scaled_sizes(config.data.image_size), config.data.image_size)
            part.say("\n".join([str(dataset.statistics()), scaled, *dataset.remarks()]))
            config = resolve_classes(config, dataset)
            check_classes(dataset, config.model.class_count)
    pixels = []
    for dataset in splits:
        findings = Findings()
        with preflight.part(f"{'training' if dataset.training else 'evaluation'} images", findings) as part:
            pixels.append(check_images(dataset, config.data, findings, decode=full))
            part.say(f"{len(dataset):,} in {dataset.images_root}: {'decoded' if full else 'headers read'}")
    if len(splits) == 2:
        findings = compare_data(
            config.model, splits[0], splits[1], pixels=(pixels[0], pixels[1]) if len(pixels) == 2 else None
        )
        with preflight.part("both splits", findings) as part:
            part.say("compared: categories, images in both, objects with the number of queries")
    return splits


def _load_weights(
    config: Config, start: Start, detector: nn.Module, classes: Sequence[str], processes: Processes
) -> str:
    """Load the weights that the training starts from; returns where they came from. Raises CheckpointError."""
    if isinstance(start, CheckpointError):
        raise start
    if start is None:
        return load_initial_weights(detector, config, processes, classes)
    load_weights(detector, start.checkpoint.model, source=str(start.path))
    start.checkpoint.require_training_state(start.path)
    try:
        build_optimizer(detector, config.optim).load_state_dict(start.checkpoint.optimizer)
    except ValueError as error:
        raise CheckpointError(f"{start.path}: its optimiser does not fit: {error}") from error
    return f"{start.path}: {start.checkpoint.progress}"


def _densest_batch(data: DataConfig, training_set: CocoDetection, *, skip: bool) -> Batch | None:
    """The densest batch; None if every image is missing, which is a finding already."""
    try:
        return densest_batch(training_set, data, skip=skip)
    except DataError as error:
        if error.reason == "missing_image":
            return None
        raise


def _try_steps(
    config: Config, detector: nn.Module, batch: Batch, processes: Processes, part: Part, *, images: int
) -> None:
    detector.to(processes.device)
    criterion = build_criterion(config)
    seconds = []
    for what, tried in (("the densest images", batch), ("the same without objects", batch.without_objects())):
        trial = try_step(detector, criterion, tried, device=processes.device, amp=config.runtime.amp)
        objects, (height, width) = sum(len(target.labels) for target in tried.targets), tried.images.shape[-2:]
        seconds.append(trial.seconds)
        part.say(
            f"{what}: {len(tried)} of {width} x {height} px, {objects:,} objects, at most {trial.queries:,} queries "
            f"each: {trial.seconds:.2f} s, peak memory {trial.memory_mb:,.0f} MB"
        )
    steps = -(-images // config.data.batch_size)
    hours = sorted(config.optim.epochs * steps * pace / 3600 for pace in seconds)
    part.say(
        f"{counted(config.optim.epochs, 'epoch')} of {counted(steps, 'such step')} on {processes.device.type}: "
        f"{hours[0]:.1f} to {hours[1]:.1f} hours, evaluations not counted"
    )
