"""Truncate or alter checkpoints: the damage is detected, and the previous checkpoint used, with one warning."""

import argparse
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.checkpoints.checkpoint import load_checkpoint
from engine.checkpoints.sealed_file import DamagedError
from tests.chaos.finding import Finding
from tests.chaos.launch import Run
from tests.chaos.resume import terminate_self
from tests.chaos.toy import BATCHES, Toy, differences
from tests.support.hooks import at_step


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    stopped = toy.folder("stopped")
    hook = partial(at_step, BATCHES + 2, terminate_self)  # last.1.pth is the end of the first epoch
    Run(toy.begin(stopped), log=stopped.with_suffix(".txt"), hook=hook).expect(75)
    draw = random.Random(options.seed)
    for case, harm in {"truncated": truncate, "one bit flipped": flip}.items():
        finding = Finding("damage", case)
        for _ in range((options.moments + 1) // 2):
            folder = toy.folder("damage")
            shutil.copytree(stopped, folder)
            place = harm(folder / "last.pth", draw)
            finding.add(place, fall_back(toy, folder))
        yield finding


def truncate(path: Path, draw: random.Random) -> str:
    length = draw.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"at byte {length}"


def flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    position, bit = draw.randrange(len(content)), draw.randrange(8)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {position}"


def fall_back(toy: Toy, folder: Path) -> list[str]:
    last, earlier = folder / "last.pth", folder / "last.1.pth"
    try:
        load_checkpoint(last)
        problems = ["not detected"]
    except DamagedError:
        problems = []
    Run(["--resume", str(last)], log=folder.with_suffix(".txt")).expect(0)
    log = (folder / "log.txt").read_text().splitlines()
    warnings = [line for line in log if "warning: " in line and ".pth" in line]  # others are of the data
    if not (len(warnings) == 1 and str(last) in warnings[0] and str(earlier) in warnings[0]):
        problems.append(f"warnings: {warnings}")
    return problems + differences(folder, toy.uninterrupted())
