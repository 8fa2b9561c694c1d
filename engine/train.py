"""The training loop: one epoch, step by step. It receives objects and builds none."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema import OptimConfig
from datasets.structures import Batch, Target
from engine.checkpoints.checkpoint import Progress
from engine.distributed.processes import Processes
from engine.meter import BatchResult, Meter
from engine.optim import WeightAverage, learning_rate_factor, set_learning_rates
from engine.step_errors import NonFiniteLossError, images_of, memory_explained
from models.structures import DetectorOutput

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Criterion(Protocol):
    """Detector output and targets -> named losses, whose sum is minimised.

    Raises FloatingPointError, on all ranks alike, for predictions that are not finite.
    """

    def __call__(self, output: DetectorOutput, targets: list[Target]) -> dict[str, Tensor]: ...


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Context of a forward pass in mixed precision; amp: none | bf16 | fp16."""
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES.get(amp), enabled=amp != "none")


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What an optimiser step needs and changes."""

    detector: nn.Module
    """In DistributedDataParallel where there are several processes"""
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Enabled with fp16 only"""
    average: WeightAverage | None = None
    """Moving average of the weights, updated after every step"""
    amp: str = "none"
    """none | bf16 | fp16"""


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    *,
    config: OptimConfig,
    progress: Progress,
    num_batches: int,
    processes: Processes,
    meter: Meter,
    warn: Callable[[str], None],
    after_step: Callable[[], bool],
) -> None:
    """Train the rest of the epoch: one optimiser step per `config.accumulate_steps` batches.

    batches       from `progress.batch` on; the last step of an epoch averages over the batches that remain
    progress      counts batches and steps
    num_batches   batches of the whole epoch
    warn          called with a message for each skipped step
    after_step    called after each step, when everything is counted; returns whether to stop

    If the loss or gradient of any rank is not finite, all ranks skip the step: nothing of the learner changes. Raises
    NonFiniteLossError after more than `config.max_skipped_steps` in a row, and StepMemoryError; both name the images.
    """
    learner.detector.train()
    meter.start_clock()
    stream = iter(meter.waiting(batches))
    while size := min(config.accumulate_steps, num_batches - progress.batch):
        set_learning_rates(learner.optimizer, learning_rate_factor(config, epoch=progress.epoch, step=progress.step))
        taken, results = list[Batch](), list[BatchResult]()
        try:
            for batch in islice(stream, size):
                taken.append(batch)
                with shared_gradients(learner.detector, share=len(taken) == size):
                    results.append(add_gradients(learner, batch, processes, of=size))
            gradient_norm = take_step(learner, largest_norm=config.clip_grad_norm)
        except FloatingPointError:
            taken += islice(stream, size - len(taken))
            meter.skip()
            if not lowers_scale(learner.scaler):
                images = images_of(taken, results, processes)
                skip_step(progress, images, limit=config.max_skipped_steps, warn=warn)
        else:
            progress.skipped_in_row = 0
            meter.add(results, gradient_norm)
            if learner.average is not None:
                learner.average.update(progress.step)
        learner.optimizer.zero_grad(set_to_none=True)  # frees memory before the next forward pass or an evaluation
        progress.advance(batches=size)
        if after_step():
            return


def shared_gradients(detector: nn.Module, *, share: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward pass; share: all-reduce the gradients accumulated so far."""
    if share or not isinstance(detector, DistributedDataParallel):
        return nullcontext()
    return detector.no_sync()


def add_gradients(learner: Learner, batch: Batch, processes: Processes, *, of: int) -> BatchResult:
    """Forward and backward pass of one batch; a step averages the gradients of `of` batches."""
    with memory_explained(batch) as num_queries:
        batch = batch.to(processes.device, non_blocking=True)
        with autocast(processes.device, learner.amp):
            output = learner.detector(batch.images, batch.padding_mask, batch.targets)
        num_queries.append(output.num_queries)
        losses = learner.criterion(output, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        # A loss that is not finite must show in the gradients, which all ranks share: the factor is 1, or else NaN.
        learner.scaler.scale(total / of).backward(1 + 0 * total.detach())
    detached = {name: value.detach() for name, value in losses.items()}
    return BatchResult(detached, total.detach(), output.num_queries, batch.targets)


def take_step(learner: Learner, *, largest_norm: float) -> Tensor:
    """Clip the gradients and step; returns the norm before clipping.

    Raises FloatingPointError, without a step, if the norm is not finite. With float16 the scale may have been too
    large; the scaler has lowered it then.
    """
    learner.scaler.unscale_(learner.optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(learner.detector.parameters(), largest_norm or math.inf)
    finite = math.isfinite(float(gradient_norm))  # sync
    if finite:
        learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if not finite:
        raise FloatingPointError("the gradient is not finite")
    return gradient_norm


def lowers_scale(scaler: torch.amp.GradScaler) -> bool:
    """True if fp16 overflow explains it; GradScaler has already backed off."""
    return scaler.is_enabled() and scaler.get_scale() >= 1


def skip_step(progress: Progress, images: str, *, limit: int, warn: Callable[[str], None]) -> None:
    """Count a skipped step; raises NonFiniteLossError after more than `limit` in a row."""
    progress.skipped += 1
    progress.skipped_in_row += 1
    problem = f"the loss or its gradient is not finite ({images})"
    if progress.skipped_in_row > limit:
        raise NonFiniteLossError(
            f"step {progress.step + 1}: {problem}, as in the {limit} skipped steps before it; lower optim.lr, "
            "set optim.clip_grad_norm, or runtime.amp: none"
        )
    warn(f"warning: skipping step {progress.step + 1}: {problem}")
