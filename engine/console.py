"""Standard output and error that never fail: a broken console does not end a run. Imports nothing of this project."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


def guard_console() -> None:
    """Keep writes to stdout and stderr from raising, in this process and its forks; call it first.

    Characters that the console's encoding lacks become backslash escapes. A console that fails (a pipe whose reader has
    exited, a closed terminal, a full disk, a closed descriptor) is replaced by the null device for good, for programs
    started later too. A warning on stderr says that stdout was dropped, except after a broken pipe, as with `head`.
    Standard descriptors that are closed at the start become the null device, so that no file of the run gets their
    number. Non-blocking streams, as some parents leave them, are made blocking.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, so the next open gets this number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for descriptor in (1, 2):
        os.set_blocking(descriptor, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Console):
            setattr(sys, name, cast(TextIO, _Console(name, stream)))


class _Console:
    """Replacement of sys.stdout or sys.stderr; None, as Python sets it for a closed descriptor, is the null device."""

    def __init__(self, name: str, stream: TextIO | None) -> None:
        self._name = name
        self._stream = _nowhere() if stream is None else stream

    def write(self, text: str) -> int:
        try:
            self._write(text)
        except (OSError, ValueError) as error:  # a ValueError of a closed file
            self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _fail(self, error: OSError | ValueError) -> None:
        if isinstance(error, BlockingIOError):
            return  # another program made the stream non-blocking: this text is lost, the next may pass
        failed, self._stream = self._stream, _nowhere()
        with suppress(OSError, ValueError):  # it buffers text that Python would write again at exit
            os.dup2(self._stream.fileno(), failed.fileno())
        if self._name == "stdout" and not isinstance(error, BrokenPipeError):
            reason = getattr(error, "strerror", None) or error
            print(f"warning: stdout is dropped, it cannot be written ({reason})", file=sys.stderr, flush=True)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
