"""What a JSON value stands for: integers, numbers and flags, also where they are written as text."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Hashable
from typing import Any

from datasets.findings import Findings

_INTEGER = re.compile(r"(-?)0*([0-9]{1,19})(\.0{1,9})?", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def as_integer(value: Any) -> int | None:
    """3 of 3, 3.0, "3", "3.0" or "003"; None of anything else, and beyond 64 bits."""
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value)
        if match is None:
            return None
        number = int(match[1] + match[2])
    elif type(value) is int:
        number = value
    elif type(value) is float and value.is_integer():
        number = int(value)
    else:
        return None
    return number if -(2**63) <= number < 2**63 else None


def as_number(value: Any) -> int | float | None:
    """The number itself, or that of a decimal text; None of anything else. May be infinite or NaN."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else None
    return value if type(value) in (int, float) else None


def as_flag(value: Any) -> bool | None:
    """0, 1, true, false, also with a point or as text in any case; None of anything else."""
    if isinstance(value, str):
        flag = _FLAGS.get(value.strip().lower())
        return None if flag is None else bool(flag)
    return bool(value) if type(value) in (int, float, bool) and value in (0, 1) else None


def id_key(value: Any) -> Hashable:
    """Equal for ids that read alike: an integer where it is one, else the text, else how it is written."""
    number = as_integer(value)
    if number is not None:
        return number
    return value if isinstance(value, str) else ("", shorten(value))


class Mended:
    """What was read as something else than it is written: counted by reason, with the first of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def note(self, reason: str, message: Callable[[], str]) -> None:
        """message   is asked for once per reason"""
        first, count = self._found.get(reason, ("", 0))
        self._found[reason] = first or message(), count + 1

    def report(self, findings: Findings) -> None:
        for reason, (first, count) in self._found.items():
            more = f" ({count:,} such values)" if count > 1 else ""
            findings.add("fixed", reason, f"{first}{more}", count=count)


def describe(section: str, number: int, entry: Any) -> str:
    known = f" (id {shorten(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
    return f"{section}[{number}]{known}"


def shorten(value: Any, limit: int = 80) -> str:
    """The value in at most `limit` characters, however deep or large it is."""
    text = _repr.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 4, 30, 30
_repr.maxstring = _repr.maxlong = _repr.maxother = 80
