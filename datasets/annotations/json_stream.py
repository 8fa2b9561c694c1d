"""A large JSON object read block by block, never held whole; and what single JSON values mean."""

from __future__ import annotations

import gc
import json
import re
import reprlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_CHUNK = 1 << 21
"""Characters read at a time, at least."""
_ENTRIES = 10_000
"""Entries of a block that is read entry by entry."""

_decode = json.JSONDecoder().raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match
_between_objects = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*\{")
_INTEGER = re.compile(r"(-?)0*([0-9]{1,19})(\.0{1,9})?", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


class InvalidJSONError(Exception):
    """The message says where, by line and column, and what is wrong."""


Consumer = Callable[[list[Any]], None]
"""Called with the next entries of a list, in order"""


def read_object(path: Path, consumers: Mapping[str, Consumer]) -> Any:
    """The file's JSON value; lists of an object named in `consumers` go there in blocks and are returned empty.

    path        UTF-8, with or without a byte order mark
    consumers   key of the object -> called with each block of the list of that key
    raises      InvalidJSONError, also for a key that occurs twice; OSError, ValueError, RecursionError
    """
    with path.open(encoding="utf-8-sig", newline="") as file, without_garbage_collection():
        reader = _Reader(file)
        value = _read_members(reader, consumers) if reader.peek() == "{" else reader.value()
        if reader.peek():
            raise reader.error("Extra data")
        return value


def _read_members(reader: _Reader, consumers: Mapping[str, Consumer]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    reader.take("{", "an object")
    if reader.peek() == "}":
        reader.take("}", "the end")
        return members
    while True:
        if reader.peek() != '"':
            raise reader.error("Expecting property name enclosed in double quotes")
        key = reader.value()
        if key in members:
            raise reader.error(f"{key!r} appears twice")
        reader.take(":", "Expecting ':' delimiter")
        if reader.peek() == "[":
            kept: list[Any] = []
            for block in reader.blocks():
                consumers.get(key, kept.extend)(block)
            members[key] = kept
        else:
            members[key] = reader.value()
        if reader.take(",}", "Expecting ',' delimiter") == "}":
            return members


class _Reader:
    """A window that moves over the text of a file."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0
        self.line, self.column = 1, 1  # of text[0]

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            self.at = _skip_space(self.text, self.at).end()  # type: ignore[union-attr]  # matches always
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._extend():
                return ""

    def take(self, wanted: str, problem: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.error(problem)
        self.at += 1
        return found

    def value(self) -> Any:
        """The value that starts at the next character."""
        self.peek()
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._extend():
                    continue
                self.at = error.pos
                raise self.error(error.msg) from None
            if end < len(self.text) - 2 or not self._extend():  # else the number may continue, as 1 does in 1e-4
                self.at = end
                return value

    def blocks(self) -> Iterator[list[Any]]:
        """The entries of the list that starts at the next character."""
        self.take("[", "a list")
        if self.peek() == "]":
            self.take("]", "the end")
            return
        while True:
            yield self._block()
            if self.take(",]", "Expecting ',' delimiter") == "]":
                return

    def _block(self) -> list[Any]:
        """The next entries: of objects, all that are in the window; at least one."""
        if len(self.text) - self.at < _CHUNK:
            self._extend()
        self.peek()
        cuts = list(_between_objects.finditer(self.text, max(self.at, len(self.text) - _CHUNK // 16)))
        if cuts:
            end = cuts[-1].start() + 1
            try:  # a cut inside an entry leaves a bracket open, one beyond the list has one too many
                entries = json.loads(f"[{self.text[self.at : end]}]")
            except (ValueError, RecursionError):
                pass  # entry by entry, then
            else:
                self.at = end
                return entries
        entries = [self.value()]
        while len(entries) < _ENTRIES and self.peek() == ",":
            self.take(",", "a comma")
            entries.append(self.value())
        return entries

    def error(self, problem: str) -> InvalidJSONError:
        line, column = self._place()
        return InvalidJSONError(f"line {line}, column {column}: {problem}")

    def _extend(self) -> bool:
        """Drop what was read and double the rest; False at the end of the file."""
        more = self.file.read(max(_CHUNK, len(self.text) - self.at))
        if more:
            self.line, self.column = self._place()
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def _place(self) -> tuple[int, int]:
        newlines = self.text.count("\n", 0, self.at)
        if newlines == 0:
            return self.line, self.column + self.at
        return self.line + newlines, self.at - self.text.rfind("\n", 0, self.at)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Decoded JSON has no cycles, but so many objects that the search for cycles takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    """Key of an id, equal for ids that mean the same: the integer, else the text, else the shortened value."""
    number = as_integer(value)
    if number is not None:
        return number
    return value if isinstance(value, str) else ("", shorten(value))


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
