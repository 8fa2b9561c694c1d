"""The training loop: one epoch, to be read aloud. It receives objects and builds none."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.schema import OptimConfig
from engine.logger import RunLogger
from engine.optim import learning_rate_factor, set_learning_rates

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(ArithmeticError):
    """Training has diverged."""


class TrainingTarget(Protocol):
    """What the loop itself reads of a target."""

    @property
    def image_id(self) -> int: ...
    @property
    def labels(self) -> Tensor: ...


class TrainingBatch(Protocol):
    """What the loop reads of a batch."""

    @property
    def images(self) -> Tensor: ...
    @property
    def padding_mask(self) -> Tensor: ...
    @property
    def targets(self) -> Sequence[Any]: ...

    def to(self, device: torch.device, non_blocking: bool = False) -> "TrainingBatch": ...


class Criterion(Protocol):
    """Output of the detector and targets -> named losses, whose sum is minimised."""

    def __call__(self, output: Any, targets: Sequence[Any]) -> dict[str, Tensor]: ...


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context of a forward pass; amp: none | bf16 | fp16."""
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES.get(amp), enabled=amp != "none")


def train_one_epoch(
    detector: nn.Module,
    criterion: Criterion,
    batches: Iterable[TrainingBatch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    config: OptimConfig,
    epoch: int,
    step: int,
    device: torch.device,
    amp: str,
    logger: RunLogger,
    log_every: int,
) -> int:
    """One pass over the batches.

    epoch     0-based epoch in progress
    step      optimiser steps before this epoch
    returns   optimiser steps after it

    Raises NonFiniteLossError with the image ids of the batch; weights are then those before it.
    """
    detector.train()
    meter = Meter()
    for batch in batches:
        batch = batch.to(device, non_blocking=True)
        set_learning_rates(optimizer, learning_rate_factor(config, epoch=epoch, step=step))
        with autocast(device, amp):
            output = detector(batch.images, batch.padding_mask, batch.targets)
        losses = criterion(output, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        require_finite(total, batch.targets)

        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(detector.parameters(), config.clip_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # here: the next forward pass, or an evaluation, has the memory

        step += 1
        meter.add(losses, total, gradient_norm, output.num_queries, batch.targets)
        if step % log_every == 0:
            report_step(logger, optimizer, meter, epoch=epoch, step=step)
            meter = Meter()
    return step


def require_finite(total: Tensor, targets: Sequence[TrainingTarget]) -> None:
    """Raises NonFiniteLossError."""
    if not math.isfinite(value := float(total.detach())):  # sync
        raise NonFiniteLossError(
            f"the loss is {value} (images {[target.image_id for target in targets]}); lower optim.lr, set "
            "optim.clip_grad_norm, or runtime.amp: none"
        )


class Meter:
    """Means of what happened since the last report."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.steps = 0
        self.images = 0
        self.objects = 0
        self.sums: dict[str, Tensor] = {}

    def add(
        self,
        losses: dict[str, Tensor],
        total: Tensor,
        gradient_norm: Tensor,
        num_queries: Tensor,
        targets: Sequence[TrainingTarget],
    ) -> None:
        self.steps += 1
        self.images += len(targets)
        values = {f"loss/{name}": value for name, value in losses.items()} | {
            "loss": total,
            "gradient_norm": gradient_norm,
            "queries_per_image": num_queries.float().mean(),
        }
        self.objects += sum(len(target.labels) for target in targets)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def means(self) -> dict[str, float]:
        sums = torch.stack(list(self.sums.values())).tolist()  # sync
        seconds = time.perf_counter() - self.start
        means = {name: value / self.steps for name, value in zip(self.sums, sums, strict=True)}
        return means | {"objects_per_image": self.objects / self.images, "images_per_second": self.images / seconds}


def report_step(logger: RunLogger, optimizer: torch.optim.Optimizer, meter: Meter, *, epoch: int, step: int) -> None:
    """One line, one record of every loss term, the learning rates, and the pace."""
    means = meter.means()
    rates = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
    logger.record("train", step, means | rates)
    logger.say(
        f"epoch {epoch + 1}  step {step}  loss {means['loss']:.3f}  gradient {means['gradient_norm']:.2f}  "
        f"lr {max(rates.values()):.1e}  queries {means['queries_per_image']:.0f} for "
        f"{means['objects_per_image']:.0f} objects  {means['images_per_second']:.1f} images/s"
    )
