"""Standard output and error, which never end the work of a program. A leaf: it imports nothing of this project."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


def guard_console() -> None:
    """From here on no write to stdout or stderr raises, in this process and in those forked from it; call it first.

    Characters that a console lacks are shown as backslash escapes. A console that fails (a pipe whose reader has left,
    a terminal that is gone, a full disk, a closed descriptor) is dropped for good: what is written to it, by this
    process or by programs it starts, goes nowhere. A warning on stderr says that stdout was dropped, except where its
    reader left, as `head` does. Standard descriptors that were closed at the start lead nowhere, so that no file of
    the run gets their number. A stream that does not wait for a slow reader, as some parents leave it, is made to wait.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, and so the lowest number that is free
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for descriptor in (1, 2):
        os.set_blocking(descriptor, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Console):
            setattr(sys, name, cast(TextIO, _Console(name, stream)))


class _Console:
    """In the place of sys.stdout or sys.stderr; None, which Python sets for a closed descriptor, leads nowhere."""

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
        if name == "_stream":  # a copy that is being made has none
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
            return  # another program made the stream not wait: this text is lost, the next one may pass
        failed, self._stream = self._stream, _nowhere()
        with suppress(OSError, ValueError):  # it holds text that Python would try to write once more, at the end
            os.dup2(self._stream.fileno(), failed.fileno())
        if self._name == "stdout" and not isinstance(error, BrokenPipeError):
            reason = getattr(error, "strerror", None) or error
            print(f"warning: stdout is dropped, it cannot be written ({reason})", file=sys.stderr, flush=True)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
