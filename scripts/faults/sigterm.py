"""SIGTERM at random moments, to a run and to torchrun: saved, and on to the same bits."""

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import main
from scripts.faults.finding import Finding
from scripts.faults.launch import LIMIT, Run, torchrun, wait_until
from scripts.faults.toy import STEPS, Toy

STEP_SECONDS = 0.1
"""About one step's; the signal comes within it"""


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    draw = random.Random(options.seed)
    for case, ranks in {"to a run of 1 process": 1, "to torchrun with 2 processes": 2}.items():
        finding, seconds = Finding("SIGTERM", case), []
        for _ in range(options.signals):
            after, delay = draw.randrange(1, STEPS), draw.uniform(0, STEP_SECONDS)
            folder = toy.folder("sigterm")
            stop = stop_run if ranks == 1 else stop_torchrun
            elapsed, problems = stop(toy, folder, after=after, delay=delay)
            seconds.append(elapsed)
            problems += toy.finish(folder, ranks=ranks)
            finding.add(f"{1e3 * delay:.0f} ms after step {after}", problems)
        finding.note("signal to exit", seconds)
        yield finding


def stop_run(toy: Toy, folder: Path, *, after: int, delay: float) -> tuple[float, list[str]]:
    """Seconds from the signal to the exit, and what was wrong with it."""
    run = Run(toy.begin(folder), log=folder.with_suffix(".txt"))
    await_step(folder, after)
    time.sleep(delay)
    start = time.monotonic()
    run.processes[0].terminate()
    codes = run.wait()
    return time.monotonic() - start, [] if codes == [75] else [f"exit codes {codes}"]


def stop_torchrun(toy: Toy, folder: Path, *, after: int, delay: float) -> tuple[float, list[str]]:
    """The signal goes to torchrun alone, which passes it on; it hides the exit code, status.json has it."""
    group = ["--nproc_per_node=2", "--standalone"]
    arguments = toy.begin(folder, ranks=2)
    with torchrun(Path(main.__file__), arguments, options=group, log=folder.with_suffix(".txt")) as agent:
        try:
            await_step(folder, after)
            time.sleep(delay)
            start = time.monotonic()
            agent.terminate()
            agent.wait(LIMIT)
            elapsed = time.monotonic() - start
        finally:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    status = json.loads((folder / "status.json").read_text())
    return elapsed, [] if status["exit_code"] == 75 else [f"status {status}"]


def await_step(folder: Path, step: int) -> None:
    """Return once the metrics log holds this training step."""
    log, mark = folder / "metrics.jsonl", f'"kind": "train", "step": {step},'
    wait_until(lambda: log.exists() and mark in log.read_text(), every=0.005)
