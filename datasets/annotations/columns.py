"""Flat columns of a file's objects. Plainly sound entries become columns at once; doubtful ones are kept, packed."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

HUGE = 1e9
"""px; no image is that large."""
IDS = range(-(2**62) + 1, 2**63)
"""Annotation ids that are kept as they are."""
FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
"""Keys of an annotation that are read."""
_PACKED = 10_000
"""Entries packed together."""


@dataclass(frozen=True, eq=False)
class ObjectColumns:
    """N objects, with the ids of the file.

    image_ids, category_ids  (N,)    int64
    boxes                    (N, 4)  float64 xywh px
    areas                    (N,)    float64 px^2, the `area` field or w*h
    crowd, ignored           (N,)    bool
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    @classmethod
    def empty(cls) -> ObjectColumns:
        ids, numbers, flags = np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.bool_)
        return cls(ids, ids, numbers, numbers[:, 0], flags, flags)

    def reorder(self, order: np.ndarray) -> ObjectColumns:
        """(M,) distinct indices -> these objects in this order, written over the old ones column by column.

        Needs memory for a copy of one column, not of all.
        """
        columns = {}
        for field in fields(self):
            column = getattr(self, field.name)
            column[: len(order)] = column.take(order, axis=0)
            columns[field.name] = column[: len(order)]
        return ObjectColumns(**columns)


class ColumnsBuilder:
    """Objects of block after block in buffers that grow in place, without a second copy."""

    def __init__(self) -> None:
        self._empty = {field.name: getattr(ObjectColumns.empty(), field.name) for field in fields(ObjectColumns)}
        self._content = {name: bytearray() for name in self._empty}

    def add(self, columns: ObjectColumns) -> None:
        for name, content in self._content.items():
            content += np.ascontiguousarray(getattr(columns, name)).data

    def view(self) -> ObjectColumns:
        """All objects so far, in the builder's memory: BufferError for `add` while the view lives."""
        return ObjectColumns(
            **{
                name: np.frombuffer(content, dtype=self._empty[name].dtype).reshape(-1, *self._empty[name].shape[1:])
                for name, content in self._content.items()
            }
        )


class DoubtfulEntries:
    """Annotations to check field by field once all ids are known: compressed, because they may be all of a file."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._recent: list[tuple[int, Any]] = []

    def add(self, start: int, entries: list[Any]) -> None:
        """start   number of the first entry in the file"""
        for number, entry in enumerate(entries, start):
            known = {key: entry[key] for key in FIELDS if key in entry} if isinstance(entry, dict) else None
            self._recent.append((number, known))
        if len(self._recent) >= _PACKED:
            self._packed.append(zlib.compress(marshal.dumps(self._recent), level=1))
            self._recent = []

    def __bool__(self) -> bool:
        return bool(self._packed or self._recent)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Number in the file and entry, None for one that is no JSON object."""
        for packed in self._packed:
            yield from marshal.loads(zlib.decompress(packed))
        yield from self._recent


def to_columns(entries: list[Any], *, keep_zero_area: bool) -> ObjectColumns | None:
    """None unless every entry is plainly sound in itself, whether or not its image and category exist."""
    try:
        boxes = [entry["bbox"] for entry in entries]
        references = [[entry[key] for entry in entries] for key in ("image_id", "category_id")]
        ids = [entry.get("id", 0) for entry in entries]
        areas = [entry.get("area") for entry in entries]
        crowd = [entry.get("iscrowd", 0) for entry in entries]
        ignored = [entry.get("ignore", 0) for entry in entries]
        numbers = list(chain.from_iterable(boxes))
        plain = (
            _types(boxes) <= {list}
            and set(map(len, boxes)) <= {4}
            and _types(numbers) <= {int, float}
            and _types(chain(ids, *references)) <= {int}
            and min(ids) in IDS
            and max(ids) in IDS
            and (_types(areas) <= {int, float} or _types(areas) == {type(None)})
            and set(crowd) <= {0, 1}
            and set(ignored) <= {0, 1}
        )
        if not plain:
            return None
        xywh = np.array(numbers, dtype=np.float64).reshape(-1, 4)
        columns = ObjectColumns(
            image_ids=np.array(references[0], dtype=np.int64),
            category_ids=np.array(references[1], dtype=np.int64),
            boxes=xywh,
            areas=xywh[:, 2] * xywh[:, 3] if None in areas else np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=np.bool_),
            ignored=np.array(ignored, dtype=np.bool_),
        )
    except (KeyError, TypeError, AttributeError, OverflowError):
        return None
    return columns if _are_sound(columns, keep_zero_area=keep_zero_area) else None


def _are_sound(columns: ObjectColumns, *, keep_zero_area: bool) -> bool:
    sizes, areas = columns.boxes[:, 2:], columns.areas
    return bool(
        (np.abs(columns.boxes) < HUGE).all()
        and ((sizes >= 0) if keep_zero_area else (sizes > 0)).all()
        and ((areas >= 0) & (areas < HUGE**2)).all()
    )


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


@dataclass(frozen=True, eq=False)
class PackedStrings:
    """N strings in two read-only arrays, which processes share.

    Reading a string of a list counts its references, which writes to its page: every worker would copy the list.

    content  (bytes,)  uint8, UTF-8, one string after the other
    starts   (N+1,)    int64, string i is content[starts[i] : starts[i + 1]]
    """

    content: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, strings: Sequence[str]) -> PackedStrings:
        encoded = [string.encode(errors="surrogatepass") for string in strings]
        lengths = np.array([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        """The string of 0 <= index < N."""
        start, end = self.starts[index : index + 2].tolist()
        return self.content[start:end].tobytes().decode(errors="surrogatepass")
