"""EXIF orientation (tag 274): the frame in which an image is read."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

ExifPolicy = Literal["auto", "apply", "ignore"]

_TAG = 274
_WIDTH, _LENGTH = 256, 257
_PNG_TAIL = 65_536
_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}


@dataclass(frozen=True)
class Frame:
    """How the pixels of a file are read.

    orientation  of EXIF, 1 to 8; 1 is as stored
    applied      the pixels are turned as it says
    ambiguous    they are not, and the annotated size would be the same if they were
    """

    orientation: int
    applied: bool = False
    ambiguous: bool = False


def read_orientation(image: Image.Image, path: Path) -> int:
    """1 to 8, of an image that is opened and not yet decoded; 1 without a readable tag."""
    if image.format == "PNG" and "exif" not in image.info and (found := _exif_after_pixels(path)):
        image.info["exif"] = found
    try:
        value = Image.Image.getexif(image).get(_TAG, 1)  # that of a PNG would decode it
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1  # a damaged tag is no reason to refuse the pixels
    return value if value in _METHODS else 1


def stored_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(width, height) of the pixels as stored; Pillow turns those of a TIFF."""
    if image.format == "TIFF" and orientation > 1:
        return image.tag_v2[_WIDTH], image.tag_v2[_LENGTH]  # type: ignore[attr-defined]
    return image.size


def choose_frame(
    stored: tuple[int, int], orientation: int, annotated: tuple[int, int], policy: ExifPolicy
) -> Frame | None:
    """The frame of the annotated (width, height) px; None where the image has another size.

    policy   apply, ignore: as EXIF says, as stored. auto: turned only where the annotated size is that of the turned
             image alone
    """
    turned = stored[::-1] if orientation >= 5 else stored
    if policy == "apply":
        return Frame(orientation, applied=orientation > 1) if annotated == turned else None
    if annotated == stored:
        return Frame(orientation, ambiguous=policy == "auto" and orientation > 1 and turned == stored)
    return Frame(orientation, applied=True) if policy == "auto" and annotated == turned else None


def into_frame(image: Image.Image, frame: Frame) -> Image.Image:
    """The decoded image, turned if the frame says so."""
    image.load()
    turned_by_pillow = image.format == "TIFF"
    if frame.orientation == 1 or frame.applied == turned_by_pillow:
        return image
    orientation = frame.orientation if frame.applied else _INVERSE.get(frame.orientation, frame.orientation)
    return image.transpose(_METHODS[orientation])


def _exif_after_pixels(path: Path) -> bytes | None:
    """The eXIf chunk of a PNG, which may follow the pixels; its checksum excludes a chance match."""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(stream.tell() - _PNG_TAIL, 0))
        tail = stream.read()
    place = tail.rfind(b"eXIf")
    if place < 4:
        return None
    end = place + 4 + int.from_bytes(tail[place - 4 : place], "big")
    sound = zlib.crc32(tail[place:end]).to_bytes(4, "big") == tail[end : end + 4]
    return b"Exif\0\0" + tail[place + 4 : end] if sound else None
