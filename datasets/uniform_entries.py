"""The numbers of JSON objects that are written alike, all at once: ten million annotations without as many dicts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

_NUMERIC = b"0123456789.-"
_ONLY_NUMBERS = bytes(code if code in _NUMERIC else ord(" ") for code in range(256))
_MAY_PRECEDE, _MAY_FOLLOW = (np.isin(np.arange(256), list(characters)) for characters in (b" \t\r\n:[,", b" \t\r\n,]}"))
_ZERO, _NINE, _POINT, _MINUS = b"09.-"
_is_plain_key = re.compile("[a-zA-Z_]+").fullmatch
_between = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=\{)").match
MAX_LENGTH = 32
"""Characters of a number"""
MAX_DIGITS = 18
"""Of an integer: as many are within 64 bits"""
EXACT_DIGITS = 15
"""An integer of as many, divided by a power of ten up to 10^22, gives the float64 nearest to the decimal number"""
POWERS = np.array([float(f"1e{k}") for k in range(MAX_LENGTH)])


class _Numbers(NamedTuple):
    """Where the numbers of a text are: (n,) or (N, k) places of their first characters, behind their last ones, and of
    their decimal points (behind the number where it has none)."""

    starts: np.ndarray
    ends: np.ndarray
    points: np.ndarray


def read_uniform(text: str, wanted: Collection[str]) -> dict[str, np.ndarray] | None:
    """The values of some keys where the objects differ in nothing but decimal numbers; None where they do not.

    text     JSON objects with commas between them
    returns  key -> (N,), or (N, k) for lists of k numbers, to the bit as a JSON parser reads them: int64 where no
             number has a point, otherwise float64. Without keys that no object has
    """
    end = text.find("}") + 1
    layout, between = _layout(text[:end]), _between(text, end)
    if not layout or not text.isascii() or any(layout[key][1] is None for key in wanted if key in layout):
        return None
    content = text.encode()
    frame, comma = (part.encode().translate(None, _NUMERIC) for part in (text[:end], between[0] if between else ","))
    frames = content.translate(None, _NUMERIC)
    count = (len(frames) + len(comma)) // (len(frame) + len(comma))
    numbers = _find_numbers(content) if frames == comma.join([frame] * count) else None
    if numbers is None or len(numbers.starts) != count * sum(size for size, _ in layout.values()):
        return None
    table = [place.reshape(count, -1) for place in numbers]
    found, first = {}, 0
    for key, (size, is_list) in layout.items():
        if key in wanted:
            columns = [_values(content, _Numbers(*(place[:, first + i] for place in table))) for i in range(size)]
            found[key] = np.stack(columns, axis=1) if is_list else columns[0]
        first += size
    return found


def _layout(entry: str) -> dict[str, tuple[int, bool | None]] | None:
    """Per key how many numbers it has, and whether they are a list, None where of lists; None for other values."""
    try:
        members = json.loads(entry, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    layout: dict[str, tuple[int, bool | None]] = {}
    for key, value in members if isinstance(members, list) else []:
        count = _count(value)
        if count is None or key in layout or not _is_plain_key(key):
            return None
        is_list = isinstance(value, list)
        flat = is_list and count > 0 and list not in map(type, value)
        layout[key] = count, flat if flat or not is_list else None
    return layout


def _count(value: Any) -> int | None:
    """Numbers in nested lists; None where there is anything else."""
    if type(value) in (int, float):
        return 1
    counts = [_count(item) for item in value] if type(value) is list else [None]
    return None if None in counts else sum(counts)  # type: ignore[arg-type]


def _find_numbers(content: bytes) -> _Numbers | None:
    """None unless all are decimal numbers as JSON has them, short enough, and none is part of a word."""
    characters = np.frombuffer(content, np.uint8)
    spaced = np.frombuffer(content.translate(_ONLY_NUMBERS), np.uint8)
    is_number = spaced != ord(" ")
    edges = np.flatnonzero(is_number[1:] != is_number[:-1]) + 1  # the text begins and ends with a brace
    starts, ends = edges[::2], edges[1::2]
    if len(starts) == 0:
        return None
    digits = starts + (characters[starts] == _MINUS)
    spots = np.flatnonzero(spaced == _POINT)
    owners = np.searchsorted(starts, spots, side="right") - 1
    points = ends.copy()
    points[owners] = spots
    sound = (
        (ends - digits <= np.where(points < ends, MAX_LENGTH, MAX_DIGITS)).all()
        and _MAY_PRECEDE[characters[starts - 1]].all()
        and _MAY_FOLLOW[characters[ends]].all()
        and np.count_nonzero(spaced == _MINUS) == np.count_nonzero(digits - starts)
        and (np.diff(owners) > 0).all()  # one point each
        and (points > digits).all()
        and (points != ends - 1).all()
        and ((characters[digits] != _ZERO) | (points == digits + 1)).all()  # no 01
        and (digits < ends).all()
    )
    return _Numbers(starts, ends, points) if sound else None


def _values(content: bytes, numbers: _Numbers) -> np.ndarray:
    """(n,) of one column."""
    starts, ends, points = numbers
    lengths = ends - starts
    characters = np.frombuffer(content + b" " * MAX_LENGTH, np.uint8)
    mantissa = np.zeros(len(starts), np.int64)
    for offset in range(lengths.max()):
        character = characters[starts + offset]
        used = (offset < lengths) & (character >= _ZERO) & (character <= _NINE)
        mantissa = np.where(used, mantissa * 10 + character - _ZERO, mantissa)
    negative = characters[starts] == _MINUS
    if (points == ends).all():
        return np.where(negative, -mantissa, mantissa)
    values = mantissa / POWERS[np.maximum(ends - points - 1, 0)]
    values = np.where(negative & ((mantissa > 0) | (points < ends)), -values, values)  # -0.0 has a sign, -0 has none
    long = np.flatnonzero(lengths - negative - (points < ends) > EXACT_DIGITS)
    values[long] = [
        float(content[start:end]) for start, end in zip(starts[long].tolist(), ends[long].tolist(), strict=True)
    ]
    return values
