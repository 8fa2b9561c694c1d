"""One step: a program with a time limit and its own log."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL"""
LEAST = 5.0
"""A step starts only if at least this many seconds remain"""


@dataclass
class Figures:
    """What a step found."""

    line: str = ""
    """For the list of steps"""
    tables: list[str] = field(default_factory=list)
    """Markdown"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, and how its figures are read after it has ended."""

    name: str
    """Also of its log"""
    command: Sequence[str] = ()
    limit: float = 60.0
    """Seconds"""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Besides that of this process"""
    read: Callable[[Path], Figures] | None = None
    """Log -> figures; after a failure, those that exist"""
    missing: str = ""
    """Why it cannot run here; empty if it can"""
    optional: bool = False
    """A failure means that the step is not possible here"""


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    name: str
    outcome: Literal["passed", "failed", "not run"]
    reason: str
    """Why it did not pass"""
    seconds: float
    figures: Figures
    log: Path | None
    """Or None"""


def run_step(step: Step, folder: Path, *, root: Path, seconds_left: float) -> Result:
    """Run it in `root` with `<name>.log` in the folder; failures become results, too.

    A step is ended, with all the processes that it started, at its limit or when the day ends.
    """
    if step.missing:
        return Result(step.name, "not run", step.missing, 0.0, Figures(), None)
    if seconds_left < LEAST:
        return Result(step.name, "not run", "no time is left (--minutes)", 0.0, Figures(), None)
    log, start = folder / f"{step.name}.log", time.monotonic()
    limit = min(step.limit, seconds_left)
    reason = _run(step, log, root=root, limit=limit)
    seconds = time.monotonic() - start
    figures = Figures()
    if step.read is not None:
        try:
            figures = step.read(log)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = reason or f"its figures cannot be read: {type(error).__name__}: {error}"
    outcome: Literal["passed", "failed", "not run"] = "failed" if reason else "passed"
    if reason and step.optional:
        outcome = "not run"
    return Result(step.name, outcome, reason, seconds, figures, log)


def tail(log: Path, lines: int) -> str:
    """The last lines of a log, without overwritten progress bars."""
    text = log.read_bytes().decode(errors="replace")
    return "\n".join(line.rstrip().rpartition("\r")[2] for line in text.rstrip().split("\n")[-lines:])


def _run(step: Step, log: Path, *, root: Path, limit: float) -> str:
    """Why it failed; empty if it passed."""
    with log.open("wb") as file:
        file.write(f"$ {' '.join(step.command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                step.command,
                cwd=root,
                env=os.environ | step.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be started: {error}"
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"timed out after {limit:.0f} s"
        finally:
            _end(process)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, if any still run."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
