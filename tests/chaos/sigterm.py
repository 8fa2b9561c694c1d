"""Send SIGTERM and SIGHUP at random moments, to a run and to torchrun: the resumed run must end bit-identical."""

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import main
from tests.chaos.finding import Finding
from tests.chaos.launch import Run, end_torchrun, torchrun, wait_until
from tests.chaos.toy import STEPS, Toy

STEP_SECONDS = 0.1
"""About one step; the signal comes within it"""


class Stop:
    """Seconds since the signal, and problems."""

    def __init__(self, folder: Path, signalled: float, problems: list[str]) -> None:
        self.exit = time.time() - signalled
        # In an evaluation the checkpoint is older than the signal.
        self.saved = max((folder / "last.pth").stat().st_mtime - signalled, 0.0)
        self.problems = problems


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    draw = random.Random(options.seed)
    for number, ranks in ((signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)):
        case = "to a run of 1 process" if ranks == 1 else f"to torchrun with {ranks} processes"
        finding, stops = Finding(number.name, case), []
        for _ in range(options.signals):
            after, delay = draw.randrange(1, STEPS), draw.uniform(0, STEP_SECONDS)
            folder = toy.folder("sigterm")
            if ranks == 1:
                stops.append(stop_run(toy, folder, number, after=after, delay=delay))
            else:
                stops.append(stop_torchrun(toy, folder, after=after, delay=delay))
            problems = stops[-1].problems + toy.finish(folder, ranks=ranks)
            finding.add(f"{1e3 * delay:.0f} ms after step {after}", problems)
        finding.note("signal to checkpoint", [stop.saved for stop in stops])
        finding.note("signal to exit", [stop.exit for stop in stops])
        yield finding


def stop_run(toy: Toy, folder: Path, number: signal.Signals, *, after: int, delay: float) -> Stop:
    run = Run(toy.begin(folder), log=folder.with_suffix(".txt"))
    await_step(folder, after)
    time.sleep(delay)
    signalled = time.time()
    os.kill(int(run.processes[0].pid or 0), number)
    return Stop(folder, signalled, run.problems(75))


def stop_torchrun(toy: Toy, folder: Path, *, after: int, delay: float) -> Stop:
    """The signal goes to torchrun, which forwards it. torchrun hides the exit code; status.json has it."""
    arguments, log = toy.begin(folder, ranks=2), folder.with_suffix(".txt")
    agent = torchrun(Path(main.__file__), arguments, options=["--nproc_per_node=2", "--standalone"], log=log)
    await_step(folder, after)
    time.sleep(delay)
    signalled = time.time()
    agent.terminate()
    end_torchrun(agent)
    status = json.loads((folder / "status.json").read_text())
    return Stop(folder, signalled, [] if status["exit_code"] == 75 else [f"status {status}"])


def await_step(folder: Path, step: int) -> None:
    """Wait until the metrics log contains this training step."""
    log, mark = folder / "metrics.jsonl", f'"kind": "train", "step": {step},'
    wait_until(lambda: log.exists() and mark in log.read_text(), every=0.005)
