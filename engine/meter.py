"""Training statistics since the last record: mean losses, throughput, memory."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from datasets.structures import Target
from engine.logger import RunLogger
from engine.runtime import peak_memory_mb
from engine.wording import counted

Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchResult:
    """Result of one batch after its backward pass."""

    losses: Mapping[str, Tensor]
    """Scalars by name"""
    total: Tensor
    """Their sum"""
    num_queries: Tensor
    """(B,)"""
    targets: Sequence[Target]


class Meter:
    """Sums since the last record. They are saved in checkpoints, so that resuming does not change a record."""

    def __init__(self) -> None:
        self._clock = time.perf_counter()
        self.replaced = 0
        """Unreadable images that were replaced, on this rank and since the last checkpoint"""
        self.clear()

    def clear(self) -> None:
        self.steps = 0
        self.skipped = 0
        self._images = 0
        self._objects = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._sums: dict[str, Tensor] = {}

    def start_clock(self) -> None:
        """Exclude the time since the last step: call it before training continues after something else."""
        self._clock = time.perf_counter()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time spent in the iterator counts as waiting for data."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield item

    def add(self, results: Sequence[BatchResult], gradient_norm: Tensor) -> None:
        """Add one optimiser step over these batches."""
        self._tick()
        self.steps += 1
        self._add("gradient_norm", gradient_norm)
        for result in results:
            self._images += len(result.targets)
            self.replaced += sum(target.replaces is not None for target in result.targets)
            self._objects += sum(len(target.labels) for target in result.targets)
            values = {f"loss/{name}": value for name, value in result.losses.items()} | {
                "loss": result.total,
                "queries_per_image": result.num_queries.float().mean(),
            }
            for name, value in values.items():
                self._add(name, value / len(results))

    def skip(self) -> None:
        """Count one skipped step."""
        self._tick()
        self.skipped += 1

    def means(self) -> dict[str, float]:
        """Means per step or image; no losses if every step was skipped."""
        sums = torch.stack(list(self._sums.values())).tolist() if self._sums else []  # sync
        means = {name: value / self.steps for name, value in zip(self._sums, sums, strict=True)}
        if self._images:
            means["objects_per_image"] = self._objects / self._images
        return means | {"skipped_steps": float(self.skipped)}

    def pace(self) -> dict[str, float]:
        """Timings, which differ between two runs of the same config."""
        seconds = max(self._seconds, 1e-9)
        return {
            "seconds_per_step": self._seconds / max(self.steps + self.skipped, 1),
            "images_per_second": self._images / seconds,
            "data_wait_per_second": self._waited / seconds,
        }

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        sums = {name: value.cpu() for name, value in self._sums.items()}
        counts = [self.steps, self.skipped, self._images, self._objects]
        return {"sums": sums, "counts": counts, "seconds": [self._seconds, self._waited]}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the state of a checkpoint; an empty one, of an early format, changes nothing."""
        if state:
            self._sums = {name: value.to(device) for name, value in state["sums"].items()}
            self.steps, self.skipped, self._images, self._objects = state["counts"]
            self._seconds, self._waited = state["seconds"]

    def _tick(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def report_step(
    logger: RunLogger,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
    *,
    epoch: int,
    step: int,
    steps: int,
    device: torch.device,
) -> None:
    """Write one log line, and one record with all losses, learning rates and timings.

    epoch   0-based epoch in progress
    step    finished optimiser steps, of `steps` in the whole run
    """
    means, pace, memory = meter.means(), meter.pace(), peak_memory_mb(device)
    rates = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
    logger.record("train", step, means | rates | pace | {"peak_memory_mb": memory})
    left = (steps - step) * pace["seconds_per_step"]
    parts = [f"epoch {epoch + 1}", f"step {step} of {steps}"]
    if meter.steps:
        parts += [
            f"loss {means['loss']:.3f}",
            f"gradient {means['gradient_norm']:.2f}",
            f"lr {max(rates.values()):.1e}",
            f"queries {means['queries_per_image']:.0f} for {means['objects_per_image']:.0f} objects",
        ]
    if meter.skipped:
        parts.append(f"{counted(meter.skipped, 'step')} skipped")
    parts += [
        f"{pace['images_per_second']:.1f} images/s",
        f"waits for data {pace['data_wait_per_second']:.0%}",
        f"{memory:.0f} MB",
        f"{duration(left)} left",
    ]
    logger.say("  ".join(parts))


def duration(seconds: float) -> str:
    """hours:minutes:seconds"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
