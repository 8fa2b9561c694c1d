"""Stop after every step and in every evaluation, then resume: the end must be bit-identical to an uninterrupted run."""

import argparse
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial

from engine.checkpoints.checkpoint import load_checkpoint
from tests.chaos.finding import Finding
from tests.chaos.launch import Run
from tests.chaos.toy import EPOCHS, STEPS, Toy
from tests.support.hooks import at_evaluation, at_step

Hook = Callable[[], None]


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    for ranks in (1, 2):
        for workers in (0, 2):
            yield stop_everywhere(toy, ranks=ranks, workers=workers)


def stop_everywhere(toy: Toy, *, ranks: int, workers: int) -> Finding:
    """With several ranks, each of them gets the signal in turn."""
    finding = Finding("resume", f"{ranks} process(es), {workers} workers")
    steps = set()
    for place, hook in moments(ranks):
        folder = toy.folder("resume")
        arguments = toy.begin(folder, ranks=ranks, workers=workers)
        run = Run(arguments, log=folder.with_suffix(".txt"), ranks=ranks, hook=hook)
        if problems := run.problems(75):
            finding.add(place, problems)
            continue
        steps.add(load_checkpoint(folder / "last.pth").progress.step)
        finding.add(place, toy.finish(folder, ranks=ranks, workers=workers))
    finding.figures["stopped after steps"] = ", ".join(map(str, sorted(steps)))
    return finding


def moments(ranks: int) -> Iterator[tuple[str, Hook]]:
    for number in range(1, STEPS + 1):
        yield f"step {number}", partial(at_step, number, terminate_self, rank=number % ranks)
    for number in range(1, EPOCHS + 1):
        yield f"evaluation {number}", partial(at_evaluation, number, terminate_self, rank=number % ranks)


def terminate_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
