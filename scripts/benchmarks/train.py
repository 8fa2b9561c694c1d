"""A training step: forward, losses with matching, backward, optimiser; time and peak memory.

A shipped experiment with random weights, on random images with boxes of 6 to 30 px. The first step, which creates the
optimiser's state, is not timed; peak memory is that of a later step, with weights, gradients and state.
"""

import argparse
import time
from itertools import pairwise

import torch
from torch import nn

from datasets.structures import Batch
from engine.optim import build_optimizer
from engine.train import autocast
from models.build import build_criterion, build_detector
from models.criterion import Criterion
from scripts.benchmarks.harness import Cell, Table, median, peak_mebibytes, process_mebibytes, synchronise
from scripts.benchmarks.scenes import add_scene_options, load_experiment, random_batch

STAGES = ("forward", "losses", "backward", "optimiser")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_scene_options(parser, side=512)
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 300, 1500], help="per image")


def measure(options: argparse.Namespace) -> list[Table]:
    config, device = load_experiment(options), torch.device(options.device)
    table = Table(f"training step: {options.batch} x {options.side}x{options.side}")
    for objects in options.objects:
        torch.manual_seed(0)
        detector = build_detector(config).to(device).train()
        step = Step(detector, build_criterion(config), build_optimizer(detector, config.optim), amp=config.runtime.amp)
        batch = random_batch(
            batch=options.batch,
            side=options.side,
            objects=objects,
            num_classes=config.model.class_count,
            device=device,
        )
        step(batch)
        peak = peak_mebibytes(lambda: step(batch))  # noqa: B023
        row: dict[str, Cell] = {"objects": objects, "activations, MiB": peak, "process, MiB": process_mebibytes()}
        runs = [step(batch) for _ in range(options.repeats)]
        for stage, costs in zip(STAGES, zip(*runs, strict=True), strict=True):
            row[f"{stage}, CPU s"] = median([cpu for _, cpu in costs])
        row["CPU s"] = median([sum(cpu for _, cpu in run) for run in runs])
        row["wall, s"] = median([sum(wall for wall, _ in run) for run in runs])
        table.rows.append(row)
    return [table]


class Step:
    """One training step after another; a call returns the wall and CPU seconds of each stage."""

    def __init__(
        self, detector: nn.Module, criterion: Criterion, optimizer: torch.optim.Optimizer, *, amp: str = "none"
    ) -> None:
        self.detector = detector
        self.criterion = criterion
        self.optimizer = optimizer
        self.amp = amp

    def __call__(self, batch: Batch) -> list[tuple[float, float]]:
        moments = [_now()]
        with autocast(batch.images.device, self.amp):
            output = self.detector(batch.images, batch.padding_mask, batch.targets)
        moments.append(_now())
        losses = self.criterion(output, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        del output, losses
        moments.append(_now())
        total.backward()
        moments.append(_now())
        nn.utils.clip_grad_norm_(self.detector.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        moments.append(_now())
        return [(wall - w, cpu - c) for (w, c), (wall, cpu) in pairwise(moments)]


def _now() -> tuple[float, float]:
    synchronise()
    return time.perf_counter(), time.process_time()
