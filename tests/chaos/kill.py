"""kill -9 at random moments around saving: an intact checkpoint exists, and the resumed run ends bit-identical."""

import argparse
import os
import random
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.checkpoints.checkpoint import load_checkpoint
from engine.checkpoints.sealed_file import CheckpointError
from tests.chaos.finding import Finding
from tests.chaos.launch import Run
from tests.chaos.toy import EPOCHS, Toy
from tests.support.hooks import at_save, note_saves

SAVES = 2 * EPOCHS + 1
"""last.pth after every epoch and every evaluation, best.pth once, as the toy's score does not rise"""


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    finding = Finding("kill -9", f"{options.moments} moments around saving")
    draw = random.Random(options.seed)
    around = 2 * save_seconds(toy)
    unreadable = strays = fresh = 0
    for _ in range(options.moments):
        number, delay = draw.randint(1, SAVES), draw.uniform(0, around)
        place = f"save {number}, {1e3 * delay:.1f} ms after its start"
        folder = toy.folder("kill")
        problems = [] if kill(toy, folder, number=number, delay=delay) else ["the run did not save"]
        strays += len(leftovers(folder))
        broken = [path.name for path in folder.glob("*.pth") if not readable(path)]
        unreadable += len(broken)
        fresh += not any(folder.glob("last*.pth"))
        problems += [f"{name} is not readable" for name in broken]
        problems += toy.finish(folder)
        problems += [f"{path.name} was not deleted" for path in leftovers(folder)]
        finding.add(place, problems)
    finding.figures = {
        "unreadable checkpoints": unreadable,
        "files of killed saves, all deleted": strays,
        "latest, ms after the start of a save": round(1e3 * around),
        "killed before the first checkpoint": fresh,
    }
    yield finding


def save_seconds(toy: Toy) -> float:
    """Median duration of the saves of an uninterrupted run."""
    folder = toy.folder("saves")
    seconds = folder.with_suffix(".seconds")
    Run(toy.begin(folder), log=folder.with_suffix(".txt"), hook=partial(note_saves, seconds)).expect(0)
    return statistics.median(map(float, seconds.read_text().split()))


def kill(toy: Toy, folder: Path, *, number: int, delay: float) -> bool:
    """Send SIGKILL `delay` seconds after save `number` began; returns whether it began."""
    reader, writer = os.pipe()
    run = Run(toy.begin(folder), log=folder.with_suffix(".txt"), hook=partial(at_save, number, partial(signal, writer)))
    os.close(writer)
    begun = os.read(reader, 1)
    os.close(reader)
    time.sleep(delay)
    run.processes[0].kill()
    run.wait()
    return bool(begun)


def signal(writer: int) -> None:
    os.write(writer, b".")


def readable(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True


def leftovers(folder: Path) -> list[Path]:
    return [*folder.glob("*.tmp"), *folder.glob("*.partial")]
