"""Bits and bands of an image file, from its header.

Pillow's mode does not show them: it opens 16-bit colour as 8-bit RGB, keeping the high byte, and drops bands beyond the
fourth. Sources: PNG (ISO 15948) 11.2.2; TIFF 6.0, sections 2 and 18, and BigTIFF; JPEG (ISO 10918-1) B.2.2; JPEG 2000
(ISO 15444-1) A.5.1 and I.5.3; netpbm's ppm(5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_BANDS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_TIFF_VERSIONS = {42: False, 43: True}
_TIFF_WORDS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_BANDS = 65_535
_PHOTOMETRIC, _BITS, _BANDS, _EXTRA, _FORMAT = 262, 258, 277, 338, 339
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Photometric interpretation -> bands of a colour: RGB, CMYK, YCbCr, three kinds of Lab; one of any other"""
_ALPHA = (1, 2, 999)
"""Values of ExtraSamples: associated and unassociated alpha, and what Corel Draw writes for it"""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class PixelFormat:
    """
    kind      the format
    bands     samples of a pixel
    bits      most that a sample has
    numbers   "unsigned", "signed", "float" or "complex"
    usable    the bands are grey or a colour, with alpha or without
    """

    kind: str
    bands: int
    bits: int
    numbers: str = "unsigned"
    usable: bool = True

    def fault(self) -> tuple[str, str] | None:
        """(reason, problem and remedy) if converting to 8-bit RGB would lose or distort content."""
        what, remedy, held = f"a {self.kind}", "convert it to 8-bit RGB", ""
        if not self.usable:
            what += f" of {self.bands} band{'' if self.bands == 1 else 's'}"
            remedy = f"write {'three of them as 8-bit RGB' if self.bands > 2 else 'one of them as 8-bit grey'}"
        if self.bits > 8 or self.numbers != "unsigned":
            excess = "more than 8 bits per channel" if self.bits > 8 else "numbers below 0"
            held = f"holds {excess} ({self.bits}-bit {self.numbers})"
            remedy += " with a value range of your choice"
        if not self.usable and (self.bands > 4 or not held):
            marks = " (3 and 4 are read where the file marks them as RGB and alpha)" if self.bands in (3, 4) else ""
            return "band_count", f"{what}; {remedy}{marks}{held and f': it {held}'}"
        if held:
            blind = "a blind conversion would saturate, or keep the high byte alone"
            return "deep_image", f"{what} that {held}; {remedy} ({blind})"
        return None


def read_pixel_format(stream: BinaryIO) -> PixelFormat | None:
    """Of a file, from its start; None where the format has 8 bits at most, or the header is cut."""
    head = stream.read(32)
    try:
        if head.startswith(PNG_SIGNATURE):
            return _of_png(head)
        if head[:2] in (b"II", b"MM"):
            return _of_tiff(stream, head)
        if head.startswith(b"\xff\xd8"):
            return _of_jpeg(stream)
        if head.startswith(b"\xff\x4f\xff\x51"):
            return _of_codestream(head, stream)
        if head.startswith(b"\0\0\0\x0cjP  "):
            return _of_jp2(stream)
        if head[:1] == b"P":
            return _of_netpbm(stream)
    except (struct.error, ValueError, IndexError, OverflowError):
        pass  # cut off or damaged, which the decoder finds too
    return None


def _of_png(head: bytes) -> PixelFormat | None:
    bits, colour = head[24], head[25]
    return PixelFormat("PNG", _PNG_BANDS[colour], bits) if colour in _PNG_BANDS else None


def _of_tiff(stream: BinaryIO, head: bytes) -> PixelFormat | None:
    tags = _read_tags(stream, head)
    if not tags:
        return None
    photometric = tags.get(_PHOTOMETRIC, (0,))[0]
    colours = _COLOURS.get(photometric, 1)
    bands = tags.get(_BANDS, (colours,))[0]
    extra = tags.get(_EXTRA, ())
    formats = set(tags.get(_FORMAT, (1,)))
    numbers = "complex" if formats & {5, 6} else "float" if 3 in formats else "signed" if 2 in formats else "unsigned"
    unmarked_alpha = bands == 4 and colours == 3 and not extra
    alpha = bands == colours + 1 and extra[:1] and extra[0] in _ALPHA
    usable = bands == colours or bool(alpha) or unmarked_alpha
    return PixelFormat("TIFF", bands, max(tags.get(_BITS, (1,))), numbers, usable)


def _read_tags(stream: BinaryIO, head: bytes) -> dict[int, tuple[int, ...]]:
    """Those of the first page that are whole numbers and say what a pixel is."""
    order = "<" if head[:2] == b"II" else ">"
    version = max(head[2], head[3])  # some writers give it in the other byte order
    if min(head[2], head[3]) or version not in _TIFF_VERSIONS:
        return {}
    big = _TIFF_VERSIONS[version]
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    stream.seek(place)
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    count = _unpack(stream, order + ("Q" if big else "H"))
    content = stream.read(min(count, 65_535) * entry.size)
    found = {}
    for start in range(0, len(content) - entry.size + 1, entry.size):
        tag, kind, length, value = entry.unpack_from(content, start)
        if tag not in (_PHOTOMETRIC, _BITS, _BANDS, _EXTRA, _FORMAT) or kind not in _TIFF_WORDS:
            continue
        words = struct.Struct(f"{order}{min(length, _MAX_BANDS)}{_TIFF_WORDS[kind]}")
        if words.size > len(value):
            stream.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = stream.read(words.size)
        if length:
            found[tag] = words.unpack_from(value)
    return found


def _of_jpeg(stream: BinaryIO) -> PixelFormat | None:
    stream.seek(2)
    while (marker := _next_marker(stream)) not in (None, 0xD9, 0xDA):
        length = _unpack(stream, ">H")
        if marker in _JPEG_FRAMES:
            bits, _, _, bands = struct.unpack(">BHHB", stream.read(6))
            return PixelFormat("JPEG", bands, bits, usable=bands in (1, 3, 4))
        stream.seek(length - 2, 1)
    return None


def _next_marker(stream: BinaryIO) -> int | None:
    byte = stream.read(1)
    while byte and byte != b"\xff":
        byte = stream.read(1)
    while byte == b"\xff":
        byte = stream.read(1)
    return byte[0] if byte else None


def _of_jp2(stream: BinaryIO) -> PixelFormat | None:
    """The codestream inside; the colours of a palette count, not its indices."""
    place, palette = 0, None
    while True:
        stream.seek(place)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            length = _unpack(stream, ">Q")
        if kind == b"jp2c":
            found = _of_codestream(stream.read(32), stream)
            return palette if palette is not None and found.bands == 1 else found
        if kind == b"pclr":
            _, bands = struct.unpack(">HB", stream.read(3))
            palette = PixelFormat("JPEG 2000", bands, max((depth & 0x7F) + 1 for depth in stream.read(bands)))
        if kind == b"jp2h":  # holds boxes: continue with the first of them
            place = stream.tell()
        elif length < 8:
            return None
        else:
            place += length


def _of_codestream(head: bytes, stream: BinaryIO) -> PixelFormat:
    """head: its first 32 bytes"""
    siz = head[4:] + stream.read(10)
    (bands,) = struct.unpack_from(">H", siz, 36)
    depths = stream.read(3 * bands)[::3]
    bits = max((depth & 0x7F) + 1 for depth in depths)
    numbers = "signed" if any(depth & 0x80 for depth in depths) else "unsigned"
    return PixelFormat("JPEG 2000", bands, bits, numbers, usable=bands <= 4)


def _of_netpbm(stream: BinaryIO) -> PixelFormat | None:
    """Tokens are apart by blanks; a # hides the rest of its line."""
    stream.seek(0)
    content = b" ".join(line.split(b"#")[0] for line in stream.read(4096).split(b"\n"))
    words = content.split(maxsplit=4)
    kind = words[0]
    if kind in (b"Pf", b"PF"):
        return PixelFormat("PFM", 1 if kind == b"Pf" else 3, 32, "float")
    if kind in (b"P2", b"P3", b"P5", b"P6"):
        return PixelFormat("PPM", 1 if kind in (b"P2", b"P5") else 3, int(words[3]).bit_length())
    return None


def _unpack(stream: BinaryIO, form: str) -> int:
    (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    return int(value)
