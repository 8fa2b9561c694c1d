"""Watchdog: when a collective stalls, report which rank is stuck and where."""

import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch.distributed as dist

from engine.distributed.processes import Processes

ALARM = 0.7
"""Share of the limit after which a rank without progress checks the other ranks"""


class HangError(Exception):
    """A collective timed out."""


class HangWatch:
    """Context with a thread that publishes this rank's step and line of code in the store: its heartbeat.

    limit   seconds after which a collective times out (the process group's timeout)

    A rank that stays at one line for most of the limit warns which ranks are silent, or at another step or line. When
    the collective then times out, the context ends with a HangError that names them; NCCL ends the process itself, so
    there only the warning remains. Only the heartbeats are exchanged.
    """

    def __init__(self, processes: Processes, *, limit: float) -> None:
        self._processes = processes
        self._limit = limit
        self._period = min(limit / 20, 5.0)
        self._ended = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._finding: tuple[int, str] | None = None
        """Step of this rank, and which ranks it waited for"""

    def __enter__(self) -> Self:
        if self._processes.store is not None and self._processes.world_size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        steps, finding = self._finding or (-1, "")
        if isinstance(error, RuntimeError) and steps == self._processes.pulse.steps:  # a timeout of the process group
            raise HangError(f"no progress within {self._limit:g} s (runtime.hang_timeout): {finding}")

    def _watch(self) -> None:
        processes = self._processes
        assert processes.store is not None
        store = processes.store.clone()
        store.set_timeout(timedelta(seconds=max(2 * self._period, 1.0)))
        keys = [f"pulse{rank}" for rank in range(processes.world_size)]
        heard: dict[int, tuple[str, float]] = {}
        beat, since, where = 0, time.monotonic(), ""
        while not self._ended.wait(self._period):
            here = f"{processes.pulse.steps} {_place(self._main)}"
            if here != where:
                since, where, heard = time.monotonic(), here, {}
            beat += 1
            try:
                store.set(keys[processes.rank], f"{beat} {here}")
                if time.monotonic() - since < self._limit / 3:
                    continue
                pulses = [pulse.decode() for pulse in store.multi_get(keys)]
            except dist.DistError:
                if time.monotonic() - since > self._limit / 3:
                    self._report("the store does not answer; its machine or process may have ended")
                return
            for rank, pulse in enumerate(pulses):
                if heard.get(rank, ("", 0.0))[0] != pulse:
                    heard[rank] = (pulse, time.monotonic())
            if time.monotonic() - since > ALARM * self._limit and (suspects := self._suspects(heard)):
                self._report(suspects)

    def _suspects(self, heard: dict[int, tuple[str, float]]) -> str | None:
        """Ranks that are silent or not where this one is.

        heard   rank -> its last heartbeat, and when that changed
        """
        silence = time.monotonic() - 4 * self._period
        _, own_steps, own_place = heard[self._processes.rank][0].split(" ", 2)
        found = []
        for rank, (pulse, time_heard) in heard.items():
            _, steps, place = (pulse or "0 0 startup").split(" ", 2)
            name = self._processes.name(rank)
            if time_heard < silence:
                found.append(f"{name} has sent no heartbeat since its step {steps}, in {place}")
            elif (steps, place) != (own_steps, own_place):
                found.append(f"{name} is at its step {steps}, in {place}")
        mine = f"{self._processes.name(self._processes.rank)} is at its step {own_steps}, in {own_place}"
        return "; ".join([*found, mine]) if found else None

    def _report(self, finding: str) -> None:
        """Keep the finding, and print it once a step."""
        steps, (last, _) = self._processes.pulse.steps, self._finding or (-1, "")
        self._finding = (steps, finding)
        if steps != last:
            print(f"warning: no progress: {finding}; the run ends after {self._limit:g} s", file=sys.stderr, flush=True)


def _place(thread: int) -> str:
    """Function and line that a thread is at; the innermost one outside torch, if any."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_back is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "no line"
    folder, _, file = frame.f_code.co_filename.rpartition("/")
    return f"{frame.f_code.co_qualname} ({folder.rpartition('/')[2]}/{file}:{frame.f_lineno})"
