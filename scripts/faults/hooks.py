"""Moments of a run at which something can be made to happen, without the engine knowing of it."""

import os
import sys
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from engine import runs

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


def at_evaluation(number: int, act: Act) -> None:
    """Act, on every rank, when the evaluation of this number has its result, but has not returned it."""
    evaluate, count = runs.evaluate, 0

    def evaluated(*given: Any, **options: Any) -> float:
        nonlocal count
        score = evaluate(*given, **options)
        count += 1
        if count == number:
            act()
        return score

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
