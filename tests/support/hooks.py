"""Inject actions into a run: after a step, in an evaluation, during a save. The engine has no code for this."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.commands import train
from engine.evaluation.evaluate import Evaluation
from engine.trainer import Trainer

Act = Callable[[], object]


def at_step(number: int, act: Act, *, rank: int = 0, patch: pytest.MonkeyPatch | None = None) -> None:
    """Act after the step of this number, counted from 1 in this process, on one rank.

    patch   undoes it at the end of a test; None: for good, in a program of its own
    """
    if os.environ.get("RANK", "0") != str(rank):
        return
    after_step, count = Trainer.after_step, 0

    def acting(trainer: Trainer) -> bool:
        nonlocal count
        count += 1
        if count == number:
            act()
        return after_step(trainer)

    (patch or pytest.MonkeyPatch()).setattr(Trainer, "after_step", acting)


def stop_at_step(number: int, patch: pytest.MonkeyPatch, kind: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal after the step of this number."""
    at_step(number, lambda: os.kill(os.getpid(), kind), patch=patch)


def at_evaluation(number: int, act: Act, *, rank: int = 0) -> None:
    """Act at the beginning of evaluation `number`, on one rank."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    evaluate, count = train.evaluate, 0

    def evaluated(*given: Any, **options: Any) -> Evaluation:
        nonlocal count
        count += 1
        if count == number:
            act()
        return evaluate(*given, **options)

    train.evaluate = evaluated


def at_save(number: int, act: Act) -> None:
    """Act when checkpoint `number` is about to be written, before its temporary file is opened."""
    count = 0

    def event(name: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if name == "open" and str(given[0]).endswith(".pth.tmp"):
            count += 1
            if count == number:
                act()

    sys.addaudithook(event)


def note_saves(file: Path) -> None:
    """Append the seconds of every checkpoint save to the file, one per line."""
    begun = 0.0

    def event(name: str, given: tuple[Any, ...]) -> None:
        nonlocal begun
        if name == "open" and str(given[0]).endswith(".pth.tmp"):
            begun = time.perf_counter()
        elif name == "os.rename" and Path(given[1]).name in ("last.pth", "best.pth"):
            with file.open("a") as lines:
                print(time.perf_counter() - begun, file=lines)

    sys.addaudithook(event)
