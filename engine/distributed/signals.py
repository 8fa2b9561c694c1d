"""SIGTERM, SIGINT and SIGHUP: stop the run after the current step, the same one on all ranks."""

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from engine.distributed.processes import Processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: the terminal or the connection was closed"""
PATIENCE = 3.0
"""Seconds after which a second SIGINT ends the process at once; torchrun repeats the first one sooner"""
REPEATED = (signal.SIGTERM, signal.SIGHUP)
"""Ignored once a run is stopping; a terminal that closes sends more than one"""

Item = TypeVar("Item")


class Interrupted(Exception):
    """A signal stopped the run; its checkpoint is written."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Context in which a signal raises Interrupted at once, except inside a StopRequest: before and after training."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for repeated in REPEATED:
            signal.signal(repeated, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise Interrupted(f"stopped by {signal.Signals(number).name} outside the training; start again in the same way")

    previous = {number: signal.signal(number, interrupt) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Context in which signals only set a flag, on which all ranks agree after each step.

    remedy   how to resume, for the message of Interrupted

    `agreed` is true once all ranks know of a signal. DataLoader workers inherit the handlers, which is harmless.
    """

    def __init__(self, processes: "Processes", *, remedy: str) -> None:
        self.agreed = False
        self._processes = processes
        self._remedy = remedy
        self._noted: str | None = None
        self._noted_at = 0.0
        self._at_once = False
        self._previous: dict[int, Any] = {}
        self._reduced: Tensor | None = None

    def agree(self) -> bool:
        """Whether to stop now, the same answer on every rank. A collective call, after every step.

        With several ranks it is the answer of the step before: its all-reduce is done by then, so no GPU sync is
        needed.
        """
        self._processes.pulse.steps += 1
        if self._processes.world_size == 1:
            self.agreed = self._noted is not None
            return self.agreed
        earlier, self._reduced = self._reduced, self._any_noted()
        self.agreed = earlier is not None and bool(earlier)  # sync with the step before
        return self.agreed

    def settle(self) -> bool:
        """`agree` without the delay of one step, for use between epochs: before work that all ranks do together."""
        self.agreed = self.agreed or bool(self._any_noted())  # sync
        return self.agreed

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a signal to a single-process run raises Interrupted: the work is redone after resuming.

        With several ranks none may leave alone: `watched` lets them leave together.
        """
        self._at_once = self._processes.world_size == 1
        try:
            if self._at_once and self._noted is not None:
                raise self.interrupted()
            yield
        finally:
            self._at_once = False

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a signal; at the end all ranks raise Interrupted together if one received a signal."""
        for item in items:
            if self._noted is not None:
                break
            yield item
        if self.settle():
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """The exception that ends the run."""
        return Interrupted(f"stopped by {self._noted or 'a signal to another process'}; {self._remedy}")

    def __enter__(self) -> Self:
        for number in _heeded():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            ends = (self.agreed or self._noted is not None) and number in REPEATED and callable(handler)
            signal.signal(number, signal.SIG_IGN if ends else handler)  # `interruptible` restores it

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted is None:
            self._noted, self._noted_at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > self._noted_at + PATIENCE:
            raise KeyboardInterrupt
        if self._at_once:
            raise self.interrupted()

    def _any_noted(self) -> "Tensor":
        import torch  # here: `interruptible` is used before torch is imported
        import torch.distributed as dist

        noted = torch.full((), int(self._noted is not None), device=self._processes.device)
        if self._processes.world_size > 1:
            dist.all_reduce(noted, op=dist.ReduceOp.MAX)
        return noted


def _heeded() -> list[signal.Signals]:
    """SIGNALS; without SIGHUP if it is ignored already, as under nohup."""
    return [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
