"""A training, assembled from a config."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from configs.loader import dump_config
from configs.paths import expand_path
from configs.schema import Config, DataConfig
from datasets.build import build_train_loader
from datasets.coco import CocoDetection
from datasets.density import median_resize_factor
from datasets.loading import worker_failures_named
from datasets.samplers import TrainSampler
from engine.checkpoints.folder_use import require_folder
from engine.checkpoints.run_folder import Resumption, RunFolder
from engine.commands.analyze import write_training_report
from engine.commands.evaluate import evaluate
from engine.commands.exit_codes import expected_errors
from engine.commands.samples import write_samples
from engine.commands.setup import (
    Splits,
    StartingModel,
    announce_memory,
    attention_lines,
    begin,
    open_splits,
    require_same_data,
    require_same_start,
    resolve_from_data,
    starting_model,
)
from engine.commands.summary import closing_report
from engine.distributed.processes import Processes
from engine.distributed.signals import StopRequest
from engine.evaluation.evaluate import Evaluation
from engine.logger import RunLogger, naming
from engine.optim import build_optimizer
from engine.runtime import GPU_NOTICE, determinism
from engine.trainer import Trainer, TrainingData, announce
from models.build import build_criterion


def train(config: Config, start: Resumption | None, processes: Processes, *, allow_other_data: bool = False) -> None:
    """Train to the last epoch, evaluating and saving on the way.

    allow_other_data   resume from a checkpoint of a run on other training data
    """
    runtime, folder = config.runtime, expand_path(str(config.runtime.output_dir), "runtime.output_dir")
    require_same_start(start, processes)
    require_folder(folder, start, processes)
    splits = open_splits(config, processes)
    if start is not None and not allow_other_data:
        require_same_data(start, splits.training)
    splits.findings.raise_errors()
    config = resolve_from_data(config, start, splits.training)  # the last change of the config
    model = starting_model(config, start, splits.training.categories, processes)
    on_gpu = processes.device.type == "cuda"
    place = {"rank": processes.rank, "world_size": processes.world_size}
    loader = build_train_loader(splits.training, config.data, **place, seed=runtime.seed, pin_memory=on_gpu)
    resumed = start.path if start is not None else None
    with (
        RunFolder(
            folder, processes, keep=runtime.keep_checkpoints, resumed=resumed, codes=expected_errors()
        ) as run_folder,
        RunLogger(folder, is_main=processes.is_main) as logger,
        determinism(processes.device, enabled=runtime.deterministic),
        worker_failures_named(loader),
    ):
        stop = StopRequest(processes, remedy=f"resume with --resume {run_folder.last}")
        evaluator = RunEvaluator(
            config, model.evaluated, splits.validation, processes, logger, folder / "evaluation", stop
        )
        trainer = Trainer(
            detector=model.detector,
            criterion=build_criterion(config),
            average=model.average,
            optimizer=build_optimizer(model.detector, config.optim),
            loader=loader,
            evaluate=evaluator,
            config=config,
            data=training_data(splits.training, config.data),
            processes=processes,
            logger=logger,
            run_folder=run_folder,
            stop=stop,
        )
        begin(trainer, start, folder)
        record_start(config, splits, model, loader.batch_sampler, processes, logger, folder)
        trainer.fit()
        evaluator.report(run_folder.last)
        untrained = splits.training.dropped | splits.training.skipped
        logger.say(closing_report(folder, trainer.progress, untrained=untrained))


@dataclass
class RunEvaluator:
    """Optimiser steps so far -> score; keeps the last evaluation for the report."""

    config: Config
    detector: nn.Module
    dataset: CocoDetection
    processes: Processes
    logger: RunLogger
    folder: Path
    """Of the results"""
    stop: StopRequest
    last: Evaluation | None = None
    """The last evaluation, with the starts of its queries, if there will be a report"""

    def __call__(self, step: int) -> float:
        self.last = None  # frees its detections
        evaluation = evaluate(
            self.config,
            self.detector,
            self.dataset,
            self.processes,
            self.logger,
            self.folder,
            step=step,
            watch=self.stop.watched,
            record_starts=self._reports,
        )
        if self._reports and self.processes.is_main:
            self.last = evaluation
        return evaluation.score

    def report(self, checkpoint: Path) -> None:
        """Write `report.html` of the last evaluation, that of this checkpoint."""
        if self.last is not None:
            write_training_report(self.config, self.last, self.dataset, self.folder, checkpoint, self.logger)

    @property
    def _reports(self) -> bool:
        wanted = self.config.evaluation.report
        return self.config.evaluation.gallery_images > 0 if wanted is None else wanted


def training_data(dataset: CocoDetection, data: DataConfig) -> TrainingData:
    """What the checkpoints keep of the training set."""
    return TrainingData(
        categories=list(dataset.categories),
        category_ids=list(dataset.table.category_ids),
        resize_factor=median_resize_factor(dataset, data),
        fingerprint=dataset.fingerprint,
    )


def record_start(
    config: Config,
    splits: Splits,
    model: StartingModel,
    sampler: object,
    processes: Processes,
    logger: RunLogger,
    folder: Path,
) -> None:
    """Log what is about to run, and write its config.yaml."""
    if config.runtime.deterministic and processes.device.type == "cuda":
        logger.say(GPU_NOTICE)
    data = "\n".join([str(splits.training.statistics()), *splits.training.remarks()])
    if isinstance(sampler, TrainSampler) and sampler.repeats is not None:
        data += f"\n{sampler.epoch_images:,} images in an epoch: those with rare classes are repeated"
    announce(
        logger,
        name=config.model.detector,
        detector=model.detector,
        origin=model.origin,
        data=data,
        batch_size=config.data.batch_size,
        optim=config.optim,
        processes=processes,
    )
    for line in attention_lines(processes):
        logger.say(line)
    for warning in splits.findings.messages("warning"):
        logger.say(f"warning: {warning}")
    if processes.is_main:
        announce_memory(config, splits.training, processes, logger)
        write_samples(splits.training, config.data, folder / "samples.jpg")
        with naming(folder / "config.yaml"):
            (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
