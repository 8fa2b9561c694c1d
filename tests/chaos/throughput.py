"""Overhead of fault tolerance without faults: training by the engine against a bare loop of the same steps.

Both train the demo's detector from the same weights on the same batches, and end with the same weights. The engine also
logs, checks, handles signals, and saves twice: at the end of the epoch, and after its evaluation, which itself is
skipped; a real epoch has many more steps per save. The two alternate: only one runs at a time, so that load on the
machine affects both. Both allocate memory as main.py does.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

import main
from datasets.build import build_dataset, build_train_loader
from datasets.synthetic.scene import CountDistribution
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands.resolve import read_file
from engine.commands.setup import resolve_from_data
from engine.commands.train import RunEvaluator
from engine.optim import build_optimizer, learning_rate_factor, set_learning_rates
from engine.trainer import Trainer
from models.build import build_criterion, build_detector
from scripts.make_scenes import make_data_set
from tests.chaos.alternation import Program, run_in_alternation, timed_part
from tests.chaos.finding import Finding
from tests.chaos.toy import CONFIG, Toy

SIDE = 128
"""Side of the images, px"""
ENOUGH = 0.97
"""Lowest median ratio that passes"""


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    data = toy.root / "throughput_data"
    with redirect_stdout(StringIO()):
        counts = CountDistribution(min_count=1, max_count=100)
        make_data_set(data, images={"train": 2 * options.steps, "val": 2}, size=SIDE, seed=0, counts=counts, workers=1)
    settings = [f"data.root={data}", f"data.image_size=[{SIDE},{SIDE}]", "model.backbone.weights=null"]
    settings += ["optim.epochs=1", "optim.lr_drop_epochs=[]", "runtime.device=cpu", "runtime.num_threads=1"]
    settings += ["runtime.log_every=10", *toy.settings]
    wall, cpu = [], []
    finding = Finding("throughput", f"engine against a bare loop, {options.steps} steps")
    works = [run_engine, run_bare]
    for turn in range(options.turns):
        order = works if turn % 2 else works[::-1]
        found = run_in_alternation([Program(work, settings, toy.folder(work.__name__)) for work in order])
        engine, bare = found if turn % 2 else found[::-1]
        wall.append(bare[0] / engine[0])
        cpu.append(bare[1] / engine[1])
    ends = [load_weights(toy.root / work.__name__) for work in works]
    same = ends[0].keys() == ends[1].keys() and all(
        torch.equal(value, ends[1][name]) for name, value in ends[0].items()
    )
    ratio = statistics.median(wall)
    problems = [] if same else ["the weights differ"]
    finding.add("end", problems + ([] if ratio >= ENOUGH else [f"ratio {ratio:.3f} is below {ENOUGH}"]))
    for name, ratios in {"wall": wall, "CPU": cpu}.items():
        low, high = interval(ratios, seed=options.seed)
        text = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        finding.figures[f"images per {name} second, ratio, median of {len(ratios)} runs, 95 % interval"] = text
    finding.figures["step of the bare loop, s"] = round(bare[0] / options.steps, 3)
    yield finding


def interval(values: list[float], *, seed: int, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40]


def run_engine(settings: list[str], folder: Path, lane: Connection) -> None:
    def timed(trainer: Trainer) -> None:
        timed_part(lambda: fit(trainer), lane)

    fit: Callable[[Any], None] = Trainer.fit
    Trainer.fit = timed  # type: ignore[assignment,method-assign]
    RunEvaluator.__call__ = lambda self, step: -1.0  # type: ignore[method-assign]
    with redirect_stdout(StringIO()):
        assert main.main(["--config", str(CONFIG), "--set", *settings, f"runtime.output_dir={folder}"]) == 0


def run_bare(settings: list[str], folder: Path, lane: Connection) -> None:
    config = read_file(CONFIG, settings).config
    torch.manual_seed(config.runtime.seed)
    dataset = build_dataset(config.data, training=True, seed=config.runtime.seed, num_classes=config.model.num_classes)
    config = resolve_from_data(config, None, dataset)
    detector = build_detector(config).train()
    criterion = build_criterion(config)
    optimizer = build_optimizer(detector, config.optim)
    loader = build_train_loader(dataset, config.data, rank=0, world_size=1, seed=config.runtime.seed, pin_memory=False)
    torch.manual_seed(config.runtime.seed)

    def loop() -> None:
        for step, batch in enumerate(loader):
            set_learning_rates(optimizer, learning_rate_factor(config.optim, epoch=0, step=step))
            output = detector(batch.images, batch.padding_mask, batch.targets)
            loss = torch.stack(list(criterion(output, batch.targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), config.optim.clip_grad_norm)
            optimizer.step()

    timed_part(loop, lane)
    folder.mkdir()
    torch.save(detector.state_dict(), folder / "bare.pth")


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    bare = folder / "bare.pth"
    state: dict[str, torch.Tensor] = torch.load(bare) if bare.exists() else load_checkpoint(folder / "last.pth").model
    return state
