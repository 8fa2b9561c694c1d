"""A training run: epochs, evaluations, checkpoints; and going on where a run stopped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from configs.loader import dump_config
from configs.schema import Config
from engine.checkpoint import Checkpoint, CheckpointError, random_state, restore_random_state
from engine.distributed import Processes, gather_rows
from engine.interruption import StopRequest
from engine.logger import RunLogger, progress
from engine.run_folder import RunFolder
from engine.train import Criterion, TrainingBatch, train_one_epoch


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    """Finished epochs"""
    batch: int = 0
    """Finished batches of the epoch in progress, per process"""
    step: int = 0
    """Finished optimiser steps"""
    best_score: float = -1.0
    """Best evaluation so far"""
    evaluated: bool = True
    """Whether the evaluation due after the last finished epoch is done"""


class Trainer:
    """Trains a detector to the last epoch; receives everything built.

    loader      its batch_sampler has `set_epoch(epoch, start_batch)`
    evaluate    optimiser steps so far -> score of the detector, higher is better
    categories  class names, kept in the checkpoints
    run_folder  gets last.pth after every epoch and where a signal stops the run, and best.pth
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader[Any],
        evaluate: Callable[[int], float],
        config: Config,
        categories: Sequence[str],
        processes: Processes,
        logger: RunLogger,
        run_folder: RunFolder,
    ) -> None:
        self.detector = detector
        self.criterion = criterion
        self.optimizer = optimizer
        self.loader = loader
        self.evaluate = evaluate
        self.config = config
        self.categories = list(categories)
        self.processes = processes
        self.logger = logger
        self.run_folder = run_folder
        self.progress = Progress()
        self.stop = StopRequest(processes, remedy=f"go on with --resume {run_folder.last}")
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.runtime.amp == "fp16")
        # Weights are drawn by now; dropout and denoising noise differ between processes.
        torch.manual_seed(config.runtime.seed + processes.rank)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was taken (its weights are in the detector already). Raises CheckpointError."""
        states = checkpoint.random_states
        if len(states) != self.processes.world_size:
            raise CheckpointError(
                f"the checkpoint is of {len(states)} processes, this run has {self.processes.world_size}: start as "
                "many, or use it as init_from of a new run"
            )
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except ValueError as error:
            raise CheckpointError(f"the optimiser of the checkpoint does not fit: {error}") from error
        place = torch.tensor([[checkpoint.epoch, checkpoint.batch, checkpoint.step]])
        if len(gather_rows(place, self.processes).unique(dim=0)) > 1:
            raise CheckpointError("the processes read different checkpoints: give all of them the same file")
        if checkpoint.batch > 0 and checkpoint.batches != len(self.loader):
            raise CheckpointError(
                f"the checkpoint is from inside an epoch of {checkpoint.batches} batches, this run has "
                f"{len(self.loader)}: keep its data and data.batch_size, or use it as init_from of a new run"
            )
        self.scaler.load_state_dict(checkpoint.scaler)
        restore_random_state(states[self.processes.rank], self.processes.device)
        self.progress = Progress(
            epoch=checkpoint.epoch,
            batch=checkpoint.batch,
            step=checkpoint.step,
            best_score=checkpoint.best_score,
            evaluated=checkpoint.evaluated,
        )
        self.logger.rewind(self.progress.step, undone=None if checkpoint.evaluated else "evaluation")

    def fit(self) -> None:
        """Train, evaluate and save until the last epoch is done and evaluated.

        Raises Interrupted after SIGTERM or SIGINT, once last.pth holds the step in hand; RunFolderError where the
        checkpoints have no room.
        """
        epochs = self.config.optim.epochs
        if self.progress.epoch >= epochs and self.progress.evaluated:
            self.logger.say(f"already finished: {self.progress.epoch} of {epochs} epochs; raise optim.epochs to go on")
            return
        self.run_folder.require_space(checkpoint_bytes(self.detector))
        trained = self._in_processes()
        with self.stop:
            while self.progress.epoch < epochs or not self.progress.evaluated:
                if self.progress.evaluated:
                    self._train_epoch(trained)
                    self._save()
                if self.stop.settle():
                    raise self.stop.interrupted()
                if not self.progress.evaluated:
                    self._evaluate()

    def _train_epoch(self, trained: nn.Module) -> None:
        """To the end of the epoch in progress, or to where the processes agree to stop."""
        config, epoch = self.config, self.progress.epoch
        self.progress.step = train_one_epoch(
            trained,
            self.criterion,
            self._batches(),
            self.optimizer,
            self.scaler,
            config=config.optim,
            epoch=epoch,
            step=self.progress.step,
            device=self.processes.device,
            amp=config.runtime.amp,
            logger=self.logger,
            log_every=config.runtime.log_every,
        )
        if self.progress.batch < len(self.loader):
            return
        self.progress.epoch += 1
        self.progress.batch = 0
        due = self.progress.epoch % config.evaluation.every_epochs == 0 or self.progress.epoch == config.optim.epochs
        self.progress.evaluated = not due

    def _batches(self) -> Iterator[TrainingBatch]:
        """The rest of the epoch's batches, until the processes agree to stop."""
        epoch, start = self.progress.epoch, self.progress.batch
        self.loader.batch_sampler.set_epoch(epoch, start)  # type: ignore[union-attr]
        description, total = f"epoch {epoch + 1}", len(self.loader) - start
        for batch in progress(self.loader, total=total, description=description, enabled=self.processes.is_main):
            yield batch
            self.progress.batch += 1  # the loop is back for the next one
            if self.stop.agree():
                return

    def _evaluate(self) -> None:
        with self.stop.at_once():  # last.pth is there already
            score = self.evaluate(self.progress.step)
        better = score > self.progress.best_score
        self.progress.best_score = max(score, self.progress.best_score)
        self.progress.evaluated = True
        self._save(best=better)

    def _save(self, *, best: bool = False) -> None:
        states = gather_rows(random_state(self.processes.device)[None], self.processes)
        if not self.processes.is_main:
            return
        checkpoint = Checkpoint(
            model=self.detector.state_dict(),
            config=dump_config(self.config),
            categories=self.categories,
            epoch=self.progress.epoch,
            step=self.progress.step,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            random_states=[state.clone() for state in states],
            best_score=self.progress.best_score,
            evaluated=self.progress.evaluated,
            batch=self.progress.batch,
            batches=len(self.loader),
        )
        if best:
            self.run_folder.save_best(checkpoint)  # first: last.pth says that this evaluation is done
        self.run_folder.save_last(checkpoint)

    def _in_processes(self) -> nn.Module:
        """The detector, with its gradients averaged over the processes where there are several."""
        if self.processes.world_size == 1:
            return self.detector
        device = self.processes.device
        return DistributedDataParallel(self.detector, device_ids=[device] if device.type == "cuda" else None)


def checkpoint_bytes(detector: nn.Module) -> int:
    """Size of a checkpoint: the weights, and two moments of every trained one."""
    weights = sum(value.nbytes for value in detector.state_dict().values())
    return weights + 2 * sum(p.nbytes for p in detector.parameters() if p.requires_grad)


def announce(
    logger: RunLogger, config: Config, *, detector: nn.Module, processes: Processes, origin: str, data: str
) -> None:
    """What is about to run, on what data, from which weights."""
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    every = sum(p.numel() for p in detector.parameters())
    logger.say(
        f"{config.model.detector}: {every / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M trainable, from {origin}"
    )
    logger.say(data)
    batch = config.data.batch_size * processes.world_size
    logger.say(
        f"{processes.world_size} process(es) on {processes.device.type}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, batch of {batch}, {config.optim.epochs} epochs"
    )
    expected = config.optim.processes
    if expected is not None and expected != processes.world_size:
        logger.say(
            f"warning: optim.lr was chosen for {expected} processes, there are {processes.world_size}; it is not scaled"
        )
