"""Moments of a run at which something can be made to happen, without the engine knowing of it."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from engine.commands import train as runs

Act = Callable[[], object]


def at_step(number: int, act: Act, *, rank: int = 0) -> None:
    """Act right after the optimiser step of this number, counted from 1 in this process, on one rank."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    count = 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            act()

    register_optimizer_step_post_hook(step)


def at_evaluation(number: int, act: Act, *, rank: int = 0) -> None:
    """Act at the begin of the evaluation of this number, on one rank."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    evaluate, count = runs.evaluate, 0

    def evaluated(*given: Any, **options: Any) -> float:
        nonlocal count
        count += 1
        if count == number:
            act()
        return evaluate(*given, **options)

    runs.evaluate = evaluated


def at_save(number: int, act: Act) -> None:
    """Act when the checkpoint of this number begins to be written: its temporary file is about to be opened."""
    count = 0

    def event(name: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if name == "open" and str(given[0]).endswith(".pth.tmp"):
            count += 1
            if count == number:
                act()

    sys.addaudithook(event)


def note_saves(file: Path) -> None:
    """Append a line with its seconds to the file after every checkpoint that is written."""
    begun = 0.0

    def event(name: str, given: tuple[Any, ...]) -> None:
        nonlocal begun
        if name == "open" and str(given[0]).endswith(".pth.tmp"):
            begun = time.perf_counter()
        elif name == "os.rename" and Path(given[1]).name in ("last.pth", "best.pth"):
            with file.open("a") as lines:
                print(time.perf_counter() - begun, file=lines)

    sys.addaudithook(event)
