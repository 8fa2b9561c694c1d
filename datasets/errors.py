"""The exception of this package. Imports no torch, so that scripts that only write data start fast."""

from __future__ import annotations

import re


class DataError(Exception):
    """The data cannot be used. The message names file, entry, field, value and remedy, one line per problem.

    reason   a short name of the kind of problem, such as missing_image

    A DataLoader re-raises a worker's exception as `type(error)(text)`, where text is the worker's whole
    traceback. `summary()` returns the clean message in both cases.
    """

    def __init__(self, message: str, reason: str = "data") -> None:
        super().__init__(message)
        self.reason = reason

    def summary(self) -> str:
        """The message as it was first raised, without a worker's traceback."""
        text = str(self)
        if not text.startswith("Caught "):
            return text
        starts = [m.end() for m in re.finditer(rf"^(?:[\w.]+\.)?{type(self).__name__}: ", text, re.MULTILINE)]
        return text[starts[-1] :].strip() if starts else text
