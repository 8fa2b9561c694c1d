"""Training steps of whole detectors: time, and peak memory, estimated and measured, by precision and batch.

Full-size experiments with random weights on random images with boxes of 6 to 30 px; a batch that does not fit gets a
row, too. "Process" is the memory of tensors on the GPU (resident memory on a CPU) at the peak of a step, "predicted"
and "measured" are on top of the loaded detector; on CPUs, use `memory` for that. Each row is written to --json at once.
"""

import argparse
import gc
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from configs.loader import load_config
from configs.schema import Config
from engine.commands.resolve import RULES
from engine.commands.step_memory import estimate_training_step
from engine.optim import build_optimizer
from engine.runtime import FIRST_USE
from engine.train import AUTOCAST_TYPES
from models.build import build_criterion, build_detector, expected_queries
from scripts.benchmarks import harness
from scripts.benchmarks.harness import Cell, Table, median
from scripts.benchmarks.scenes import fix_queries, random_batch
from scripts.benchmarks.train import Step

CONFIGS = [
    Path(f"configs/{name}_aitodv2.yaml") for name in ("dino_d3q", "deformable_detr_d3q", "dino", "deformable_detr")
]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configs", nargs="+", type=Path, default=CONFIGS, help="experiment files")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", nargs="+", default=["none", "bf16"], choices=["none", *AUTOCAST_TYPES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4], help="images per step")
    parser.add_argument("--side", type=int, default=800, help="of the square images, px")
    parser.add_argument("--objects", type=int, default=300, help="per image")


@dataclass(frozen=True)
class Case:
    """The case of a row."""

    path: Path
    amp: str
    batch: int

    def config(self, options: argparse.Namespace) -> Config:
        return load_config(self.path, ["model.backbone.weights=null", f"runtime.amp={self.amp}", *options.set], RULES)


def measure(options: argparse.Namespace) -> list[Table]:
    table = Table(f"training steps: {options.side}x{options.side}, {options.objects} objects per image")
    for row in rows(options):
        table.rows.append(row)
        print("; ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        harness.write(options.part, [table], {}, json_file=options.json)
    return [table]


def rows(options: argparse.Namespace) -> Iterator[dict[str, Cell]]:
    """Estimate memory, some CPU seconds each: for a GPU in other processes, while the first case is measured."""
    cases = [Case(*given) for given in product(options.configs, options.amp, options.batches)]
    if torch.device(options.device).type != "cuda":
        for case in cases:
            yield run_case(case, predict(case, options), options)
        return
    processes = min(len(cases), max((os.cpu_count() or 1) // 2, 1), 8)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for case, predicted in zip(cases, pool.map(predict, cases, repeat(options)), strict=True):
            yield run_case(case, predicted, options)


def predict(case: Case, options: argparse.Namespace) -> float:
    """MiB beyond the loaded detector."""
    device_type = torch.device(options.device).type
    estimate = estimate_training_step(
        case.config(options),
        size=(options.side, options.side),
        objects=[options.objects] * case.batch,
        device_type=device_type,
        autocast=AUTOCAST_TYPES.get(case.amp),
    )
    return (estimate.peak - estimate.weights + (0 if device_type == "cuda" else FIRST_USE)) / 2**20


def run_case(case: Case, predicted: float, options: argparse.Namespace) -> dict[str, Cell]:
    """Linux only."""
    device = torch.device(options.device)
    row: dict[str, Cell] = {"detector": case.path.stem, "precision": case.amp, "batch": case.batch}
    row["predicted, MiB"] = predicted
    try:
        row |= _measure(case.config(options), case.batch, device, predicted, options)
    except torch.OutOfMemoryError:
        row["note"] = "out of memory"
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return row


def _measure(
    config: Config, batch: int, device: torch.device, predicted: float, options: argparse.Namespace
) -> dict[str, Cell]:
    torch.manual_seed(0)
    detector = build_detector(config).to(device).train()
    loaded = harness.held_mebibytes(device)
    queries = expected_queries(config, [options.objects])[0]
    fix_queries(detector, queries)
    images = random_batch(
        batch=batch,
        side=options.side,
        objects=options.objects,
        num_classes=config.model.class_count,
        device=device,
    )
    step = Step(detector, build_criterion(config), build_optimizer(detector, config.optim), amp=config.runtime.amp)
    step(images)  # makes the optimiser's state
    harness.peak_mebibytes(lambda: step(images))
    peak = harness.peak_held_mebibytes(device)
    seconds = median([sum(wall for wall, _ in step(images)) for _ in range(options.repeats)])
    beyond: dict[str, Cell] = {}
    if device.type == "cuda":
        beyond = {"measured, MiB": peak - loaded, "predicted / measured": predicted / (peak - loaded)}
    return beyond | {
        "process, MiB": peak,
        "queries": queries,
        "step, ms": 1e3 * seconds,
        "images/s": batch / seconds,
    }
