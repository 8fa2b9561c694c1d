"""Measure the effects of departures from the published code: the tables of docs/fidelity.md.

python -m scripts.benchmarks.departures                            density targets of crowds
python -m scripts.benchmarks.departures --resume runs/X/best.pth   and with a trained DINO + D3Q: switches, padding
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.paths import path_argument
from configs.schema import Config
from d3q import density_target
from datasets.build import build_dataset, build_train_loader
from datasets.structures import Batch
from engine.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from engine.commands.evaluate import build_trained, evaluate_batches, evaluation_loader, under_progress
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import read_checkpoint
from engine.commands.setup import start_runtime
from engine.console import guard_console
from engine.evaluation.evaluate import Evaluation
from models.build import build_criterion, build_detector

SIDE = 800
OBJECT = 12.7  # px, the mean of AI-TOD-v2
GAP = 1.5  # px between objects as dense as parked cars
MERGES: tuple[Literal["max"], Literal["sum"]] = ("max", "sum")
BATCH, BATCHES = 4, 20
SWITCHES: dict[str, dict[str, Any]] = {
    "published": {},
    "density_merge: sum": {"density_merge": "sum"},
    "mask_denoising_padding: true": {"mask_denoising_padding": True},
    "count_padding: false": {"count_padding": False},
    "max_denoising_queries: 100": {"max_denoising_queries": 100},
    "round_objects: false": {"round_objects": False},
    "log_size_form: logsigmoid": {"log_size_form": "logsigmoid"},
}
PADDINGS = (1.0, 1.125, 1.25, 1.5)


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--resume", type=path_argument, metavar="CHECKPOINT", help="a trained DINO + D3Q, with its data"
    )
    options = parser.parse_args(arguments)
    return exit_code(lambda: measure(options.resume))


def measure(path: Path | None) -> None:
    print("\n".join(density_rows()), flush=True)
    if path is None:
        return
    checkpoint = load_checkpoint(path)
    config = read_checkpoint(path, checkpoint.config, []).evaluated()
    if config.model.d3q is None or config.model.denoising is None:
        raise UsageError(f"{path}: not a DINO + D3Q with denoising queries, which the switches are for")
    print("\n".join(switch_rows(config, checkpoint)), flush=True)
    print("\n".join(padding_rows(config, checkpoint, path)))


def density_rows() -> Iterator[str]:
    """Sum of the density target of a crowd, as a share of its objects."""
    columns = [(stride, merge) for stride in (4, 8) for merge in MERGES]
    titles = " | ".join(f"stride {stride}, {merge}" for stride, merge in columns)
    yield f"| {OBJECT} px objects, {SIDE} px image | placed | {titles} |"
    yield "|---|---|" + "---|" * len(columns)
    for placed in ("side by side", "at random"):
        for count in (10, 100, 1000, 3000):
            boxes = crowd(count, at_random=placed == "at random")
            cells = []
            for stride, merge in columns:
                target = density_target(boxes, (SIDE // stride,) * 2, (SIDE, SIDE), merge=merge)
                cells.append(f"{100 * float(target.double().sum()) / count:.2f} %")
            yield f"| {count} | {placed} | {' | '.join(cells)} |"


def crowd(count: int, *, at_random: bool) -> Tensor:
    """(N, 4) xyxy px: a square block with one object per (OBJECT + GAP)^2 px, in rows or anywhere in it."""
    generator = torch.Generator().manual_seed(0)
    columns = math.ceil(count**0.5)
    index, pitch = torch.arange(count), OBJECT + GAP
    corner = pitch * torch.stack([index % columns, index.div(columns, rounding_mode="floor")], dim=1).float()
    corner += torch.rand(count, 2, generator=generator) * GAP
    if at_random:
        corner = torch.rand(count, 2, generator=generator) * (columns * pitch - OBJECT)
    return torch.cat([corner, corner + OBJECT], dim=1)


def switch_rows(config: Config, checkpoint: Checkpoint) -> Iterator[str]:
    """Training losses of the same batches, weights and random numbers under each switch."""
    data = replace(config.data, batch_size=BATCH, num_workers=0)
    dataset = build_dataset(data, training=True, seed=0, num_classes=config.model.num_classes)
    loader = build_train_loader(dataset, data, rank=0, world_size=1, seed=0, pin_memory=False)
    batches = list(islice(loader, BATCHES))
    yield f"\n| `fidelity` | loss, {BATCHES} batches of {BATCH} | change | queries | denoising queries |"
    yield "|---|---|---|---|---|"
    published = 0.0
    for name, switches in SWITCHES.items():
        loss, queries, denoising = training_means(
            replace(config, fidelity=replace(config.fidelity, **switches)),
            checkpoint,
            batches,
        )
        published = published or loss
        yield f"| {name} | {loss:.5f} | {100 * (loss / published - 1):+.4f} % | {queries:.2f} | {denoising:.1f} |"


@torch.no_grad()
def training_means(config: Config, checkpoint: Checkpoint, batches: list[Batch]) -> tuple[float, float, float]:
    """Means over the batches: total loss, queries of an image, denoising queries of an image (with its empty slots)."""
    detector, criterion = build_detector(config), build_criterion(config)
    load_weights(detector, checkpoint.best_weights, source="--resume")
    detector.train()
    rows = []
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        output = detector(batch.images, batch.padding_mask, batch.targets)
        total = torch.stack(list(criterion(output, batch.targets).values())).sum()
        slots = 0 if output.denoising_queries is None else output.denoising_queries.content.shape[1]
        rows.append(torch.stack([total, output.num_queries.float().mean(), torch.tensor(float(slots))]))
    loss, queries, denoising = torch.stack(rows).mean(0).tolist()
    return loss, queries, denoising


def padding_rows(config: Config, checkpoint: Checkpoint, path: Path) -> Iterator[str]:
    """Evaluate images alone, and padded as in a batch with larger ones."""
    data = replace(config.data, batch_size=1)
    yield "\n| canvas, sides | padding | AP | AP50 | count bias | queries |"
    yield "|---|---|---|---|---|---|"
    for factor, counted in ((factor, counted) for factor in PADDINGS for counted in (True, False)):
        fidelity = replace(config.fidelity, count_padding=counted)
        evaluation = evaluate_padded(replace(config, data=data, fidelity=fidelity), checkpoint, path, factor)
        ap, ap50 = (100 * evaluation.metrics.summary()[name] for name in ("mAP", "mAP_50"))
        means = f"{evaluation.counts['count_bias']:+.1f} | {evaluation.counts['mean_queries']:.1f}"
        yield f"| x {factor:g} | {'counted' if counted else 'not counted'} | {ap:.2f} | {ap50:.2f} | {means} |"


def evaluate_padded(config: Config, checkpoint: Checkpoint, path: Path, factor: float) -> Evaluation:
    processes = start_runtime(config)
    dataset, detector = build_trained(config, checkpoint, path, processes)
    batches = padded(under_progress(evaluation_loader(config.data, dataset, processes), processes), factor)
    return evaluate_batches(
        config, detector, batches, [dataset.ground_truth(i) for i in range(len(dataset))], processes
    )


def padded(batches: Iterable[Batch], factor: float) -> Iterator[Batch]:
    """The batches on a larger canvas."""
    for batch in batches:
        height, width = batch.images.shape[-2:]
        right, below = round(width * factor) - width, round(height * factor) - height
        yield replace(
            batch,
            images=F.pad(batch.images, (0, right, 0, below)),
            padding_mask=F.pad(batch.padding_mask, (0, right, 0, below), value=True),
        )


if __name__ == "__main__":
    sys.exit(main())
