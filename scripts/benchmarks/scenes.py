"""Inputs for benchmarks of whole detectors: a shipped experiment with random weights, and random images."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from configs.loader import load_config
from configs.paths import path_argument
from configs.schema import Config
from d3q import DensityBudget
from datasets.structures import Batch, Target
from engine.commands.resolve import RULES
from models.deformable_detr import DeformableDETR
from models.dino import DINO
from models.proposals import FixedBudget

CONFIG = Path("configs/dino_d3q_aitodv2.yaml")


def add_scene_options(parser: argparse.ArgumentParser, *, side: int) -> None:
    """The options that `load_experiment` and the benchmarks of whole detectors share."""
    parser.add_argument("--config", type=path_argument, default=CONFIG, help="experiment file")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", type=int, default=side, help="of the square images, px")
    parser.add_argument("--batch", type=int, default=1, help="images")


def load_experiment(options: argparse.Namespace) -> Config:
    """The experiment, without pretrained weights. Raises ConfigError, and InvalidValueError without num_classes."""
    config = load_config(options.config, ["model.backbone.weights=null", *options.set], RULES)
    _ = config.model.class_count  # refused here, not in a process of its own
    return config


def random_batch(*, batch: int, side: int, objects: int, num_classes: int, device: torch.device) -> Batch:
    """Noise images, each with `objects` boxes of 6 to 30 px."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    targets = [
        Target(
            _boxes(objects, side, generator),
            torch.randint(num_classes, (objects,), generator=generator),
            image_id=i,
            size=(side, side),
            original_size=(side, side),
        )
        for i in range(batch)
    ]
    return Batch(images, torch.zeros(batch, side, side, dtype=torch.bool), targets).to(device)


def fix_queries(detector: DINO | DeformableDETR, count: int) -> None:
    """Give every image `count` queries from now on; the density branch still runs."""
    budget = detector.query_budget
    if isinstance(budget, FixedBudget):
        budget.num_queries = count
    elif isinstance(budget, DensityBudget):
        budget.min_queries = budget.max_queries = count


def _boxes(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(N, 4) xyxy px."""
    sizes = 6 + 24 * torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (side - sizes)
    return torch.cat([corner, corner + sizes], dim=1)
