"""A training run: epochs, evaluations, checkpoints, and resuming from a checkpoint."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from configs.loader import dump_config
from configs.schema import Config, OptimConfig
from engine.checkpoints.checkpoint import Checkpoint, CheckpointError, Progress, random_state, restore_random_state
from engine.checkpoints.run_folder import RunFolder
from engine.distributed.processes import Processes, gather_rows
from engine.distributed.signals import StopRequest
from engine.logger import RunLogger, progress
from engine.meter import Meter, report_step
from engine.optim import WeightAverage
from engine.train import Criterion, Learner, train_one_epoch
from engine.wording import counted


@dataclass(frozen=True)
class TrainingData:
    """What a checkpoint keeps of the training data."""

    categories: list[str]
    """Class names, in the order of the labels"""
    category_ids: list[int]
    """Their ids in the annotation file"""
    resize_factor: float
    """Network pixels per pixel of the image file, median of the images"""
    fingerprint: str
    """Digest"""


class Trainer:
    """Trains a detector to the last epoch; receives everything built.

    average     moving average of the weights, saved in the checkpoints
    loader      its batch_sampler has `set_epoch(epoch, start_batch)`
    evaluate    optimiser steps so far -> score, higher is better
    data        saved in the checkpoints
    run_folder  gets best.pth, and last.pth after every epoch and after a signal
    stop        checked after every step, and before and after evaluations
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        criterion: Criterion,
        average: WeightAverage | None,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader[Any],
        evaluate: Callable[[int], float],
        config: Config,
        data: TrainingData,
        processes: Processes,
        logger: RunLogger,
        run_folder: RunFolder,
        stop: StopRequest,
    ) -> None:
        self.detector = detector
        self.criterion = criterion
        self.average = average
        self.optimizer = optimizer
        self.loader = loader
        self.evaluate = evaluate
        self.config = config
        self.data = data
        self.processes = processes
        self.logger = logger
        self.run_folder = run_folder
        self.progress = Progress()
        self.meter = Meter()
        self._saved_at = time.monotonic()
        self.stop = stop
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.runtime.amp == "fp16")
        # The weights are initialised by now; dropout and denoising noise differ between ranks.
        torch.manual_seed(config.runtime.seed + processes.rank)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from the checkpoint, whose weights are in the detector already. Raises CheckpointError."""
        progress, states, world_size = checkpoint.progress, checkpoint.random_states, self.processes.world_size
        theirs = counted(len(states), "process", "processes")
        if len(states) != world_size and progress.batch > 0:
            raise CheckpointError(
                f"the checkpoint is of {theirs}, this run has {world_size}: start as many until the "
                "epoch ends, or use an earlier checkpoint between epochs, or this one as init_from of a new run"
            )
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except ValueError as error:
            raise CheckpointError(f"the optimiser of the checkpoint does not fit: {error}") from error
        if progress.batch > 0 and checkpoint.batches != len(self.loader):
            raise CheckpointError(
                f"the checkpoint is from inside an epoch of {checkpoint.batches} batches, this run has "
                f"{len(self.loader)}: keep its data and data.batch_size, or use it as init_from of a new run"
            )
        if progress.batch % self.config.optim.accumulate_steps:
            raise CheckpointError(
                f"the checkpoint is from inside an epoch, after {progress.batch} batches: keep its "
                "optim.accumulate_steps until the epoch ends"
            )
        self.scaler.load_state_dict(checkpoint.scaler)
        if self.average is not None:
            self.average.restore(checkpoint.average)
        if len(states) == world_size:
            restore_random_state(states[self.processes.rank], self.processes.device)
        else:
            self.logger.say(
                f"warning: the checkpoint is of {theirs}, this run has {world_size}: the batch is "
                f"{counted(world_size * self.config.data.batch_size, 'image')} now, and random numbers are drawn anew"
            )
            torch.manual_seed(self.config.runtime.seed + self.processes.rank + progress.step)
        self.progress = replace(progress)
        self.meter.restore(checkpoint.meter, self.processes.device)
        self.logger.rewind(self.progress.step, undone=None if progress.evaluated else "evaluation")

    def fit(self) -> None:
        """Train, evaluate and save until the last epoch is done and evaluated.

        Raises Interrupted after a signal, once the current step is saved in last.pth; RunFolderError if the disk has no
        space for the checkpoints.
        """
        epochs = self.config.optim.epochs
        if self.progress.epoch >= epochs and self.progress.evaluated:
            self.logger.say(
                f"already finished: {self.progress.epoch} of {counted(epochs, 'epoch')}; raise optim.epochs to resume"
            )
            return
        if self.stopped_early:
            self.logger.say(f"already finished: {self._early()}; raise optim.early_stop to resume")
            return
        self.run_folder.require_space(checkpoint_bytes(self.detector, averaged=self.average is not None))
        learner = self._learner()
        with self.stop:
            while (self.progress.epoch < epochs and not self.stopped_early) or not self.progress.evaluated:
                if self.progress.evaluated:
                    self._train_epoch(learner)
                    self._save()
                if self.stop.settle():
                    raise self.stop.interrupted()
                if not self.progress.evaluated:
                    self._evaluate()

    @property
    def stopped_early(self) -> bool:
        """Whether `optim.early_stop` ends the training, an epoch that has begun aside."""
        patience = self.config.optim.early_stop
        return 0 < patience <= self.progress.stale and self.progress.batch == 0 and self.progress.evaluated

    def _early(self) -> str:
        return f"{counted(self.progress.stale, 'evaluation')} without an AP above {self.progress.best_score:.4f}"

    def _train_epoch(self, learner: Learner) -> None:
        """Train to the end of the epoch, or until all ranks agree to stop."""
        config, place = self.config, self.progress
        self.loader.batch_sampler.set_epoch(place.epoch, place.batch)  # type: ignore[union-attr]
        left = len(self.loader) - place.batch
        description = f"epoch {place.epoch + 1}"
        train_one_epoch(
            learner,
            progress(self.loader, total=left, description=description, enabled=self.processes.is_main),
            config=config.optim,
            progress=place,
            num_batches=len(self.loader),
            processes=self.processes,
            meter=self.meter,
            warn=self.logger.say,
            after_step=self.after_step,
        )
        if place.batch < len(self.loader):
            return
        place.epoch, place.batch = place.epoch + 1, 0
        place.evaluated = place.epoch % config.evaluation.every_epochs != 0 and place.epoch != config.optim.epochs

    def after_step(self) -> bool:
        """Log the step if it is due; returns whether the process group agrees to stop.

        The seam of tests and fault injection, which act here.
        """
        if self.progress.step % self.config.runtime.log_every == 0:
            steps_per_epoch = -(-len(self.loader) // self.config.optim.accumulate_steps)
            report_step(
                self.logger,
                self.optimizer,
                self.meter,
                epoch=self.progress.epoch,
                step=self.progress.step,
                steps=steps_per_epoch * self.config.optim.epochs,
                device=self.processes.device,
            )
            self.meter.clear()
        return self.stop.agree()

    def _evaluate(self) -> None:
        with self.stop.at_once():  # last.pth is written already
            score = self.evaluate(self.progress.step)
        better = score > self.progress.best_score
        self.progress.stale = 0 if better else self.progress.stale + 1
        self.progress.best_score = max(score, self.progress.best_score)
        self.progress.evaluated = True
        self._save(best=better)
        if self.stopped_early and self.progress.epoch < self.config.optim.epochs:
            self.logger.say(f"stopped early, after epoch {self.progress.epoch}: {self._early()}")

    def _save(self, *, best: bool = False) -> None:
        states = gather_rows(random_state(self.processes.device)[None], self.processes)
        self.progress.replaced += int(gather_rows(torch.tensor([self.meter.replaced]), self.processes).sum())
        self.meter.replaced = 0
        now = time.monotonic()
        self.progress.seconds, self._saved_at = self.progress.seconds + now - self._saved_at, now
        if not self.processes.is_main:
            return
        checkpoint = Checkpoint(
            model=self.detector.state_dict(),
            config=dump_config(self.config),
            categories=self.data.categories,
            progress=replace(self.progress),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            random_states=[state.clone() for state in states],
            batches=len(self.loader),
            data=self.data.fingerprint,
            category_ids=self.data.category_ids,
            resize_factor=self.data.resize_factor,
            meter=self.meter.state(),
            average={} if self.average is None else self.average.state(),
        )
        if best:
            self.run_folder.save_best(checkpoint)  # before last.pth, which says that this evaluation is done
        self.run_folder.save_last(checkpoint)

    def _learner(self) -> Learner:
        """What the training loop changes: the detector is in DistributedDataParallel for more than one process."""
        trained, device = self.detector, self.processes.device
        if self.processes.world_size > 1:
            trained = DistributedDataParallel(trained, device_ids=[device] if device.type == "cuda" else None)
        return Learner(
            detector=trained,
            criterion=self.criterion,
            optimizer=self.optimizer,
            scaler=self.scaler,
            average=self.average,
            amp=self.config.runtime.amp,
        )


def checkpoint_bytes(detector: nn.Module, *, averaged: bool) -> int:
    """Size of a checkpoint: the weights, their average if kept, and two moments of each trained weight."""
    weights = sum(value.nbytes for value in detector.state_dict().values())
    moments = 2 * sum(p.nbytes for p in detector.parameters() if p.requires_grad)
    return weights * (2 if averaged else 1) + moments


def announce(
    logger: RunLogger,
    *,
    name: str,
    detector: nn.Module,
    origin: str,
    data: str,
    batch_size: int,
    optim: OptimConfig,
    processes: Processes,
) -> None:
    """Log what is about to run: detector and the origin of its weights, data, processes, batch."""
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    every = sum(p.numel() for p in detector.parameters())
    logger.say(f"{name}: {every / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M trainable, from {origin}")
    logger.say(data)
    batch = batch_size * processes.world_size
    logger.say(
        f"{counted(processes.world_size, 'process', 'processes')} on {processes.device.type}, "
        f"{counted(torch.get_num_threads(), 'thread')}, torch {torch.__version__}, batch of {batch}, "
        f"{counted(optim.epochs, 'epoch')}"
    )
    expected = optim.processes
    if expected is not None and expected != processes.world_size:
        logger.say(
            f"warning: optim.lr was chosen for {counted(expected, 'process', 'processes')}, this run has "
            f"{processes.world_size}; it is not scaled"
        )
