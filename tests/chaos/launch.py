"""Start main.py in forked processes, which need no imports, or under torchrun."""

import faulthandler
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import main

FORK = multiprocessing.get_context("fork")
LIMIT = 120.0
"""Seconds after which a run counts as hung"""


class Run:
    """A started run: one process per rank, connected by gloo as under torchrun.

    arguments   of main.py
    log         gets the output of all ranks
    hook        called in each rank before main.py
    """

    def __init__(
        self, arguments: Sequence[str], *, log: Path, ranks: int = 1, hook: Callable[[], None] | None = None
    ) -> None:
        self.log = log
        log.write_text("")
        port = free_port()
        self.processes = [
            FORK.Process(target=_run, args=(arguments, log, rank, ranks, port, hook)) for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int]:
        """Exit codes, negative for signals; a hung run is killed."""
        deadline = time.monotonic() + LIMIT
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
        return [int(process.exitcode or 0) for process in self.processes]

    def problems(self, code: int) -> list[str]:
        """Empty if every process ends with this exit code; else the codes and the end of the log, in one text."""
        codes = self.wait()
        if all(found == code for found in codes):
            return []
        return [f"exit codes {codes} instead of {code}; the log ends\n{self.log.read_text()[-3000:]}"]

    def expect(self, code: int) -> None:
        """Raises RuntimeError unless every process ends with this exit code."""
        if problems := self.problems(code):
            raise RuntimeError(problems[0])


def torchrun(
    program: Path,
    arguments: Sequence[str],
    *,
    options: Sequence[str],
    log: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start torchrun with extra environment variables."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(program), *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)


def end_torchrun(agent: subprocess.Popen[bytes]) -> int:
    """Wait for its exit code; if it hangs, end it and its processes."""
    try:
        return agent.wait(LIMIT)
    except subprocess.TimeoutExpired:
        agent.terminate()  # it gives its processes 30 s
        with suppress(subprocess.TimeoutExpired):
            agent.wait(40)
        agent.kill()
        return agent.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def wait_until(done: Callable[[], bool], *, seconds: float = LIMIT, every: float = 0.01) -> bool:
    """Whether it was done in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _run(
    arguments: Sequence[str], log: Path, rank: int, ranks: int, port: int, hook: Callable[[], None] | None
) -> None:
    if ranks > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "localhost"}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the run would ignore it too
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    faulthandler.dump_traceback_later(LIMIT - 20, file=2)  # where a hung run hangs
    if hook is not None:
        hook()
    sys.exit(main.main(arguments))
