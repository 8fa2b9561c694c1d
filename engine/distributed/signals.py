"""SIGTERM, SIGINT and SIGHUP: the run stops after the step in hand, on all processes after the same one."""

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
"""SIGHUP: the terminal or the connection is gone"""
PATIENCE = 3.0
"""Seconds after which a further SIGINT ends the process at once; torchrun repeats the first one sooner."""
REPEATED = (signal.SIGTERM, signal.SIGHUP)
"""Once a run stops, a further one does not disturb its end; a terminal that closes sends more than one"""

Item = TypeVar("Item")


class Interrupted(Exception):
    """A signal stopped the run; its checkpoint is written."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal raises Interrupted at once, but where a StopRequest is open: before and after training."""

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
    """While its context is open, the signals are noted only.

    remedy   how to go on, for the message of Interrupted

    `agreed` tells whether all processes know of a signal. Loader workers inherit the handlers, harmlessly.
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
        """Whether to stop now: the same answer on every process; call it on all of them, after every step.

        Among several processes the answer is that of the step before: by then it is there, and a GPU need not be
        waited for.
        """
        self._processes.pulse.steps += 1
        if self._processes.world_size == 1:
            self.agreed = self._noted is not None
            return self.agreed
        earlier, self._reduced = self._reduced, self._any_noted()
        self.agreed = earlier is not None and bool(earlier)  # sync, with the step before
        return self.agreed

    def settle(self) -> bool:
        """`agree` of this very moment, for between epochs: before work that one process must not leave alone."""
        self.agreed = self.agreed or bool(self._any_noted())  # sync
        return self.agreed

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal to a run of one process raises Interrupted: for work done again from the last checkpoint.

        Of several processes none may leave on its own: `watched` lets them leave together.
        """
        self._at_once = self._processes.world_size == 1
        try:
            if self._at_once and self._noted is not None:
                raise self.interrupted()
            yield
        finally:
            self._at_once = False

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, up to a signal; at their end all processes raise Interrupted together where one has had it."""
        for item in items:
            if self._noted is not None:
                break
            yield item
        if self.settle():
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """The exception to end the run with."""
        return Interrupted(f"stopped by {self._noted or 'a signal to another process'}; {self._remedy}")

    def __enter__(self) -> Self:
        for number in _heeded():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            ends = (self.agreed or self._noted is not None) and number in REPEATED and callable(handler)
            signal.signal(number, signal.SIG_IGN if ends else handler)  # `interruptible` gives it back

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted is None:
            self._noted, self._noted_at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > self._noted_at + PATIENCE:
            raise KeyboardInterrupt
        if self._at_once:
            raise self.interrupted()

    def _any_noted(self) -> "Tensor":
        import torch  # here, as `interruptible` is wanted before torch is imported
        import torch.distributed as dist

        noted = torch.full((), int(self._noted is not None), device=self._processes.device)
        if self._processes.world_size > 1:
            dist.all_reduce(noted, op=dist.ReduceOp.MAX)
        return noted


def _heeded() -> list[signal.Signals]:
    """SIGHUP that was ignored at the start stays ignored: nohup wants it so."""
    return [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
