"""A training run: epochs, evaluations, checkpoints; and going on where a run stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from configs.loader import dump_config
from configs.schema import Config
from engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from engine.distributed import Processes, gather_rows
from engine.logger import RunLogger, progress
from engine.train import Criterion, train_one_epoch


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    """Finished epochs"""
    step: int = 0
    """Finished optimiser steps"""
    best_score: float = -1.0
    """Best evaluation so far"""
    evaluated: bool = True
    """Whether the evaluation due after the last finished epoch is done"""


class Trainer:
    """Trains a detector to the last epoch; receives everything built.

    loader      its batch_sampler has `set_epoch`
    evaluate    optimiser steps so far -> score of the detector, higher is better
    categories  class names, kept in the checkpoints
    folder      gets last.pth after every epoch, and best.pth
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
        folder: Path,
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
        self.folder = folder
        self.progress = Progress()
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
        self.scaler.load_state_dict(checkpoint.scaler)
        restore_random_state(states[self.processes.rank], self.processes.device)
        self.progress = Progress(checkpoint.epoch, checkpoint.step, checkpoint.best_score, checkpoint.evaluated)
        self.logger.rewind(self.progress.step)

    def fit(self) -> None:
        """Train, evaluate and save until the last epoch is done and evaluated."""
        epochs = self.config.optim.epochs
        if self.progress.epoch >= epochs and self.progress.evaluated:
            self.logger.say(f"already finished: {self.progress.epoch} of {epochs} epochs; raise optim.epochs to go on")
            return
        trained = self._in_processes()
        while self.progress.epoch < epochs or not self.progress.evaluated:
            if self.progress.evaluated:
                self._train_epoch(trained)
                self._save("last.pth")
            if not self.progress.evaluated:
                self._evaluate()

    def _train_epoch(self, trained: nn.Module) -> None:
        config, epoch = self.config, self.progress.epoch
        self.loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        self.progress.step = train_one_epoch(
            trained,
            self.criterion,
            progress(
                self.loader, total=len(self.loader), description=f"epoch {epoch + 1}", enabled=self.processes.is_main
            ),
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
        self.progress.epoch += 1
        due = self.progress.epoch % config.evaluation.every_epochs == 0 or self.progress.epoch == config.optim.epochs
        self.progress.evaluated = not due

    def _evaluate(self) -> None:
        score = self.evaluate(self.progress.step)
        better = score > self.progress.best_score
        self.progress.best_score = max(score, self.progress.best_score)
        self.progress.evaluated = True
        self._save("last.pth")
        if better:
            self._save("best.pth")

    def _save(self, name: str) -> None:
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
        )
        save_checkpoint(self.folder / name, checkpoint)

    def _in_processes(self) -> nn.Module:
        """The detector, with its gradients averaged over the processes where there are several."""
        if self.processes.world_size == 1:
            return self.detector
        device = self.processes.device
        return DistributedDataParallel(self.detector, device_ids=[device] if device.type == "cuda" else None)


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
