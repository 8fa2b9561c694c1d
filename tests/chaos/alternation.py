"""Time programs in alternation: only one runs at a time, so that load on the machine affects them all equally."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tests.chaos.launch import FORK

TURN = 0.5
"""Seconds"""
Clock = tuple[float, float]
"""Wall and CPU seconds"""


def run_in_alternation(programs: Sequence["Program"]) -> list[Clock]:
    """The time of each program in its own turns, the first one first. If one fails, all are killed."""
    try:
        while working := [program for program in programs if program.cpu is None]:
            for program in working:
                program.take_turn()
        for program in programs:
            program.end()
    finally:
        for program in programs:
            program.kill()
    return [(program.wall, program.cpu or 0.0) for program in programs]


class Program:
    """A forked process.

    work   called with the given arguments and a connection; only its part inside `timed_part` is timed
    """

    def __init__(self, work: Callable[..., None], *given: Any) -> None:
        self._lane, theirs = FORK.Pipe()
        self._process = FORK.Process(target=work, args=(*given, theirs))
        self._process.start()
        theirs.close()
        self._lane.recv()  # the process is ready and waits
        self._stopped = False
        self.wall = 0.0
        self.cpu: float | None = None
        """None until it is done"""

    def take_turn(self) -> None:
        """Raises EOFError if the process has failed."""
        start = time.perf_counter()
        self._resume()
        if self._lane.poll(TURN):
            self.cpu = self._lane.recv()
        self.wall += time.perf_counter() - start
        self._signal(signal.SIGSTOP)
        self._stopped = True

    def end(self) -> None:
        """Let it finish its untimed part."""
        self._resume()
        self._process.join()

    def kill(self) -> None:
        """No effect after it has ended."""
        self._process.kill()

    def _resume(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
        else:
            self._lane.send(None)

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def timed_part(work: Callable[[], object], lane: Connection) -> None:
    """Run the timed part of a program, when it is its turn."""
    lane.send(None)
    lane.recv()
    start = time.process_time()
    work()
    lane.send(time.process_time() - start)
