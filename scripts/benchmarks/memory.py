"""Peak memory of a training step, estimated and measured.

Each case runs in its own process, on random images with boxes of 6 to 30 px, and assumes a perfect count estimate.
"Process" is resident memory with Python and its libraries; on a GPU, the tensors there. "Step" is the memory on top of
a process that has loaded the detector.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from engine.commands.step_memory import estimate_training_step
from engine.optim import build_optimizer
from engine.runtime import FIRST_USE
from engine.train import AUTOCAST_TYPES
from models.build import build_criterion, build_detector, expected_queries
from ops import tune_allocation
from scripts.benchmarks.harness import Cell, Table, held_mebibytes, peak_held_mebibytes
from scripts.benchmarks.scenes import add_scene_options, fix_queries, load_experiment, random_batch
from scripts.benchmarks.train import Step

STEPS = 2
"""The first step creates the optimiser's state: the second one has the peak"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_scene_options(parser, side=512)
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 300, 1500], help="per image")


def measure(options: argparse.Namespace) -> list[Table]:
    recompute = load_experiment(options).runtime.recompute
    size = f"{options.batch} x {options.side}x{options.side}"
    table = Table(f"memory of a training step: {options.config.stem}, {size}, recompute {recompute}")
    for objects in options.objects:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            table.rows.append(process.submit(run_case, options, objects).result())
    return [table]


def run_case(options: argparse.Namespace, objects: int) -> dict[str, Cell]:
    """Estimate and measure in a fresh process. Linux only."""
    tune_allocation()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, device = load_experiment(options), torch.device(options.device)
    detector = build_detector(config).to(device).train()
    start = time.perf_counter()
    estimate = estimate_training_step(
        config,
        size=(options.side, options.side),
        objects=[objects] * options.batch,
        device_type=device.type,
        autocast=AUTOCAST_TYPES.get(config.runtime.amp),
    )
    seconds = time.perf_counter() - start
    loaded = held_mebibytes(device)
    predicted = (estimate.peak - estimate.weights + (0 if device.type == "cuda" else FIRST_USE)) / 2**20

    queries = expected_queries(config, [objects])[0]
    fix_queries(detector, queries)
    classes = config.model.class_count
    batch = random_batch(batch=options.batch, side=options.side, objects=objects, num_classes=classes, device=device)
    step = Step(detector, build_criterion(config), build_optimizer(detector, config.optim), amp=config.runtime.amp)
    for _ in range(STEPS):
        step(batch)
    peak = peak_held_mebibytes(device)
    return {
        "objects": objects,
        "queries": queries,
        "step predicted, MiB": predicted,
        "step measured, MiB": peak - loaded,
        "process predicted, MiB": loaded + predicted,
        "process measured, MiB": peak,
        "step, predicted / measured": predicted / (peak - loaded),
        "process, predicted / measured": (loaded + predicted) / peak,
        "prediction took, s": seconds,
    }
