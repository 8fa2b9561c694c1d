"""The training loop: one epoch, to be read aloud. It receives objects and builds none."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
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
    """Output of the detector and targets -> named losses, whose sum is minimised.

    Raises FloatingPointError, on all processes alike, for predictions that are not finite.
    """

    def __call__(self, output: DetectorOutput, targets: list[Target]) -> dict[str, Tensor]: ...


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context of a forward pass; amp: none | bf16 | fp16."""
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES.get(amp), enabled=amp != "none")


def train_one_epoch(
    detector: nn.Module,
    criterion: Criterion,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: WeightAverage | None = None,
    *,
    config: OptimConfig,
    progress: Progress,
    num_batches: int,
    processes: Processes,
    amp: str,
    meter: Meter,
    warn: Callable[[str], None],
    after_step: Callable[[], bool],
) -> None:
    """The rest of the epoch in progress: one optimiser step per `config.accumulate_steps` batches.

    batches       from `progress.batch` on; the last step of an epoch is of those left over, and of their mean too
    average       of the detector's weights; follows every step
    progress      batches and steps are counted there
    num_batches   of the whole epoch
    warn          told of each step that is left out
    after_step    called with everything counted; whether to stop here

    Where the loss or the gradient of any process is not finite, all leave the step out: weights, average and optimiser
    stay as they are. Raises NonFiniteLossError after more than `config.max_skipped_steps` of them in a row, and
    StepMemoryError, both with image ids.
    """
    detector.train()
    meter.start_clock()
    stream = iter(meter.waiting(batches))
    while size := min(config.accumulate_steps, num_batches - progress.batch):
        set_learning_rates(optimizer, learning_rate_factor(config, epoch=progress.epoch, step=progress.step))
        taken: list[Batch] = []
        results: list[BatchResult] = []
        try:
            for batch in islice(stream, size):
                taken.append(batch)
                with shared_gradients(detector, share=len(taken) == size):
                    results.append(add_gradients(detector, criterion, batch, scaler, processes, amp=amp, of=size))
            gradient_norm = take_step(detector, optimizer, scaler, largest_norm=config.clip_grad_norm)
        except FloatingPointError:
            taken += islice(stream, size - len(taken))
            meter.skip()
            if not lowers_scale(scaler):
                images = images_of(taken, results, processes)
                leave_out(progress, images, limit=config.max_skipped_steps, warn=warn)
        else:
            progress.skipped_in_row = 0
            meter.add(results, gradient_norm)
            if average is not None:
                average.update(progress.step)
        optimizer.zero_grad(set_to_none=True)  # here: the next forward pass, or an evaluation, has the memory
        progress.step += 1
        progress.batch += size
        if after_step():
            return


def shared_gradients(detector: nn.Module, *, share: bool) -> AbstractContextManager[None]:
    """Around forward and backward pass: whether the gradients summed so far become those of all processes."""
    if share or not isinstance(detector, DistributedDataParallel):
        return nullcontext()
    return detector.no_sync()


def add_gradients(
    detector: nn.Module,
    criterion: Criterion,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    processes: Processes,
    *,
    amp: str,
    of: int,
) -> BatchResult:
    """Forward and backward pass of one batch `of` those of a step, whose gradients are averaged."""
    with memory_explained(batch) as num_queries:
        batch = batch.to(processes.device, non_blocking=True)
        with autocast(processes.device, amp):
            output = detector(batch.images, batch.padding_mask, batch.targets)
        num_queries.append(output.num_queries)
        losses = criterion(output, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        # A loss that is not finite must show in the gradients, which are the same on all processes: 1, or else NaN.
        scaler.scale(total / of).backward(1 + 0 * total.detach())
    detached = {name: value.detach() for name, value in losses.items()}
    return BatchResult(detached, total.detach(), output.num_queries, batch.targets)


def take_step(
    detector: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, largest_norm: float
) -> Tensor:
    """Clip the gradients, of all processes alike, and step; returns their norm before.

    Raises FloatingPointError, without a step, where the norm is not finite: of float32 gradients, or of float16 ones
    whose scale was too large; the scaler has lowered it then.
    """
    scaler.unscale_(optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(detector.parameters(), largest_norm or math.inf)
    finite = math.isfinite(float(gradient_norm))  # sync
    if finite:
        scaler.step(optimizer)
    scaler.update()
    if not finite:
        raise FloatingPointError("the gradient is not finite")
    return gradient_norm


def lowers_scale(scaler: torch.amp.GradScaler) -> bool:
    """Whether a gradient that is not finite is but a sign that float16 needs a lower scale, which it gets."""
    return scaler.is_enabled() and scaler.get_scale() >= 1


def leave_out(progress: Progress, images: str, *, limit: int, warn: Callable[[str], None]) -> None:
    """Count a step without update; raises NonFiniteLossError after more than `limit` in a row."""
    progress.skipped += 1
    progress.skipped_in_row += 1
    problem = f"the loss or its gradient is not finite ({images})"
    if progress.skipped_in_row > limit:
        raise NonFiniteLossError(
            f"step {progress.step + 1}: {problem}, as in {limit} steps before it, which were left out; lower optim.lr, "
            "set optim.clip_grad_norm, or runtime.amp: none"
        )
    warn(f"warning: step {progress.step + 1} is left out: {problem}")
