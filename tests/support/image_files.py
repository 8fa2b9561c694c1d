"""Image files that Pillow cannot write: any number of bands and bits, in every layout of a TIFF."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_png(
    path: Path,
    *,
    bits: int,
    colour_type: int,
    size: tuple[int, int] = (20, 30),
    interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Black; `before` and `after` are further chunks around the pixels. Interlaced ones lack their pixels."""
    height, width = size
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    rows = bytes((1 + width * bands * bits // 8) * height)
    palette = [(b"PLTE", bytes(768))] if colour_type == 3 else []
    chunks = [(b"IHDR", header), *palette, *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_tiff(
    path: Path,
    *,
    bands: int,
    bits: int = 8,
    pixels: np.ndarray | None = None,
    size: tuple[int, int] = (20, 30),
    photometric: int | None = None,
    extra: Sequence[int] | None = None,
    number_format: int | None = None,
    separate: bool = False,
    order: str = "<",
    big: bool = False,
    compressed: bool = False,
    **more: Any,
) -> None:
    """`more`: tag_274=6 adds the tag 274, a short."""
    height, width = size
    photometric = photometric if photometric is not None else (2 if bands == 3 else 1)
    if pixels is None:
        pixels = np.zeros((height, width * bands * -(-bits // 8)), np.uint8)
    data = pixels.tobytes()
    strips = [data[: len(data) // bands]] * bands if separate else [data]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    start = 16 if big else 8
    places = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [8 if compressed else 1]),
        262: ("H", [photometric]),
        273: ("I", places),
        277: ("H", [bands]),
        278: ("H", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if separate else 1]),
    }
    if extra is not None:
        tags[338] = ("H", extra)
    if number_format is not None:
        tags[339] = ("H", [number_format] * bands)
    tags |= {int(name.removeprefix("tag_")): ("H", [value]) for name, value in more.items()}
    path.write_bytes(_tiff_bytes(tags, strips, start, order, big=big))


def _tiff_bytes(
    tags: dict[int, tuple[str, Sequence[int]]], strips: list[bytes], start: int, order: str, *, big: bool
) -> bytes:
    mark, offset = {"<": b"II", ">": b"MM"}[order], "Q" if big else "I"
    content = b"".join(strips)
    content += bytes(len(content) % 2)
    directory = start + len(content)
    room = 8 if big else 4
    beyond = directory + (8 if big else 2) + (20 if big else 12) * len(tags) + room
    entries, tail = b"", b""
    for tag, (word, values) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}{word}", *values)
        if len(value) > room:
            value, tail = struct.pack(order + offset, beyond + len(tail)), tail + value
        entries += struct.pack(order + "HH" + offset, tag, {"H": 3, "I": 4}[word], len(values))
        entries += value.ljust(room, b"\0")
    head = struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory)
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return mark + head + content + count + entries + bytes(room) + tail
