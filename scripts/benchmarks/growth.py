"""How the cost of a detector grows: with objects, queries, image side and batch, one at a time.

A shipped experiment with random weights. "Per unit" is the time divided by the number in the first column: if it falls,
cost grows more slowly than that number. For the side, the unit is a thousand tokens of the encoder.
"""

import argparse
from collections.abc import Callable

import torch

from configs.schema import Config
from engine.optim import build_optimizer
from models.build import build_criterion, build_detector
from scripts.benchmarks.harness import Cell, Cost, Table, costs_alternately, median
from scripts.benchmarks.model import detector_parts
from scripts.benchmarks.scenes import add_scene_options, load_experiment, random_batch
from scripts.benchmarks.train import Step


def add_options(parser: argparse.ArgumentParser) -> None:
    add_scene_options(parser, side=256)
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 300, 900, 2000], help="of the decoder")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 800], help="of images for the encoder, px")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="images of a training step")
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 300, 1500], help="per image of a training step")


def measure(options: argparse.Namespace) -> list[Table]:
    config, device = load_experiment(options), torch.device(options.device)
    few = options.objects[0]
    return [
        _decoder(config, device, options),
        _encoder(config, device, options),
        Table(
            f"training step by batch: {options.side}x{options.side}, {few} objects",
            [
                _row("images", images, _step_cost(config, device, options, images=images, objects=few))
                for images in options.batches
            ],
        ),
        Table(
            f"training step by objects: one {options.side}x{options.side} image",
            [
                _row("objects", objects, _step_cost(config, device, options, images=1, objects=objects))
                for objects in options.objects
            ],
        ),
    ]


@torch.inference_mode()
def _decoder(config: Config, device: torch.device, options: argparse.Namespace) -> Table:
    parts = _parts(config, device, side=options.side, queries=options.queries)
    decoders = {count: parts[f"decoder, {count:,} queries"] for count in options.queries}
    costs = costs_alternately({str(count): run for count, run in decoders.items()}, repeats=options.repeats)
    title = f"decoder by queries: one {options.side}x{options.side} image"
    return Table(title, [_row("queries", count, costs[str(count)]) for count in decoders])


@torch.inference_mode()
def _encoder(config: Config, device: torch.device, options: argparse.Namespace) -> Table:
    strides = [*config.model.backbone.out_strides]
    strides += [strides[-1] * 2 ** (i + 1) for i in range(config.model.neck.num_levels - len(strides))]
    table = Table("encoder by image side: one image, inference")
    for side in options.sides:
        run = _parts(config, device, side=side, queries=[])["encoder"]
        cost = costs_alternately({"encoder": run}, repeats=options.repeats)["encoder"]
        tokens = sum((-(-side // stride)) ** 2 for stride in strides)
        table.rows.append({"side, px": side} | _row("tokens", tokens, cost, unit=1000))
    return table


def _parts(config: Config, device: torch.device, *, side: int, queries: list[int]) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    detector = build_detector(config).to(device).eval()
    batch = random_batch(batch=1, side=side, objects=0, num_classes=config.model.class_count, device=device)
    return detector_parts(detector, batch.images, batch.padding_mask, queries)


def _step_cost(config: Config, device: torch.device, options: argparse.Namespace, *, images: int, objects: int) -> Cost:
    """Of one step after the first."""
    torch.manual_seed(0)
    detector = build_detector(config).to(device).train()
    step = Step(detector, build_criterion(config), build_optimizer(detector, config.optim))
    batch = random_batch(
        batch=images, side=options.side, objects=objects, num_classes=config.model.class_count, device=device
    )
    step(batch)
    runs = [step(batch) for _ in range(options.repeats)]
    walls, cpus = ([sum(stage[i] for stage in run) for run in runs] for i in (0, 1))
    return Cost(median(walls), median(cpus))


def _row(name: str, number: int, cost: Cost, *, unit: int = 1) -> dict[str, Cell]:
    of = name if unit == 1 else f"{unit:,} {name}"
    return {
        name: number,
        "CPU s": cost.cpu,
        "wall, s": cost.wall,
        f"wall, ms per {of}": 1e3 * cost.wall * unit / number,
    }
