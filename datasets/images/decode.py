"""Image files -> 8-bit RGB, or a DataError that says what is wrong with the file."""

from __future__ import annotations

import functools
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from datasets.errors import DataError
from datasets.findings import one_line
from datasets.images.orientation import ExifPolicy, Frame, choose_frame, into_frame, read_orientation, stored_size
from datasets.images.pixel_format import PixelFormat, read_pixel_format

MAX_PIXELS = 89_478_485
"""Default limit of an image: a quarter of a gigabyte, where Pillow begins to warn of decompression bombs."""
LIMIT = "data.max_image_pixels"
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
"""Pillow reads dozens more, old and rarely tested ones, and a file may claim to be any of them."""
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, LookupError, TypeError, ArithmeticError),
    *(AssertionError, AttributeError),
)
"""What Pillow raises for damaged files and for kinds of a format that it does not know"""
_FETCH_OR_CONVERT = "fetch the file again, or convert it to 8-bit RGB if its kind is the problem"


@dataclass(frozen=True)
class ImageFile:
    """Path of an image, and what its annotation file says about it, if there is one.

    path    the file
    size    (height, width) in the annotation file, px; None: any, and a camera's rotation is undone unless ignored
    entry   its entry, for messages: "train.json: images[3] (id 17)"
    """

    path: Path
    size: tuple[int, int] | None = None
    entry: str = ""


@dataclass(frozen=True)
class ImageTraits:
    """How an image is read: its mode in the file, its frame, whether later frames are ignored, and its size.

    size   (height, width) in that frame, px
    """

    mode: str
    frame: Frame
    animated: bool
    size: tuple[int, int]


def read_image(
    file: ImageFile, *, max_pixels: int = MAX_PIXELS, exif: ExifPolicy = "auto", limit: str = LIMIT
) -> Image.Image:
    """Decode one image to RGB.

    exif     whether a camera's rotation is undone; auto: if only the turned size is the annotated one
    limit    name of the setting that max_pixels comes from, for messages
    raises   DataError for a missing, empty, truncated, foreign, too large or deep image, or a size that differs

    An animation gives its first frame; palette, grey, CMYK and alpha become RGB.
    """
    with _opened(file, max_pixels, exif, limit) as (image, frame):
        image = into_frame(image, frame)
        return (image.convert("LA") if image.mode == "La" else image).convert("RGB")


def inspect_image(
    file: ImageFile, *, max_pixels: int = MAX_PIXELS, exif: ExifPolicy = "auto", limit: str = LIMIT
) -> ImageTraits:
    """The same checks on the header alone, without decoding. Raises DataError."""
    with _opened(file, max_pixels, exif, limit) as (image, frame):
        width, height = stored_size(image, frame.orientation)
        size = (width, height) if frame.applied and frame.orientation >= 5 else (height, width)
        return ImageTraits(image.mode, frame, bool(getattr(image, "is_animated", False)), size)


@contextmanager
def _opened(file: ImageFile, max_pixels: int, exif: ExifPolicy, limit: str) -> Iterator[tuple[Image.Image, Frame]]:
    """The image with its header read and checked; errors of decoding it inside the context are DataErrors too."""
    where = one_line(str(file.path))

    listed = bool(file.entry)

    def failure(reason: str, problem: str) -> DataError:
        return DataError(f"{where}: {problem}{f' ({file.entry})' if file.entry else ''}", reason)

    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own guard, which also covers what a format nests inside
    _silence_pillow()
    pixel_format = None
    try:
        with file.path.open("rb") as stream:
            pixel_format = read_pixel_format(stream)
        if pixel_format is not None and (fault := pixel_format.fault()) is not None:
            raise failure(*fault)
        with Image.open(file.path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} px")
            yield image, _find_frame(image, file, exif)
    except FileNotFoundError:
        raise failure("missing_image", "no such image" + "; check data.root and file_name" * listed) from None
    except IsADirectoryError:
        raise failure("missing_image", "is a folder, not an image" + "; check file_name" * listed) from None
    except PermissionError:
        raise failure("unreadable_image", "no permission to read it; change its permissions") from None
    except Image.DecompressionBombError as error:
        problem = f"{error}: more pixels than {limit} {max_pixels}; cut it into tiles or raise the limit"
        raise failure("image_bomb", problem) from None
    except UnidentifiedImageError:
        raise failure(*_foreign_content(file.path, pixel_format)) from None
    except _DECODER_ERRORS as error:
        reason = one_line(str(error)) or type(error).__name__
        raise failure("broken_image", f"cannot decode: {reason}; {_FETCH_OR_CONVERT}") from None


@functools.cache
def _silence_pillow() -> None:
    """Keep its logs and warnings off the terminal: they name no file, and what matters is a DataError here."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _find_frame(image: Image.Image, file: ImageFile, exif: ExifPolicy) -> Frame:
    """Raises DataError if the image's size differs from the annotated one."""
    if file.size is None:
        orientation = read_orientation(image, file.path)
        return Frame(orientation, applied=orientation > 1 and exif != "ignore")
    height, width = file.size
    orientation = read_orientation(image, file.path)
    stored = stored_size(image, orientation)
    frame = choose_frame(stored, orientation, (width, height), exif)
    if frame is not None:
        return frame
    note = f" as stored, with EXIF orientation {orientation} (data.exif: {exif})" if orientation > 1 else ""
    raise DataError(
        f"{one_line(str(file.path))}: is {stored[0]} x {stored[1]} px{note}, but {file.entry} says width {width}, "
        f"height {height}; correct the annotation file or restore the image it was made from (boxes would be "
        "misplaced)",
        "image_size",
    )


def _foreign_content(path: Path, pixel_format: PixelFormat | None) -> tuple[str, str]:
    """Reason and problem of a file of no format known to Pillow; pixel_format: from its header, if readable."""
    if pixel_format is not None:
        return "broken_image", f"cannot decode: a {pixel_format.kind} of an unknown kind; {_FETCH_OR_CONVERT}"
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        return "empty_image", "is empty (0 bytes); fetch the file again"
    if head.startswith(b"version https://git-lfs"):
        return "not_an_image", "is a Git LFS pointer, not an image; run `git lfs pull`"
    if head[:1] == b"<":
        return "not_an_image", "is a web page or XML, not an image; fetch the file again"
    known = ", ".join(FORMATS)
    return "not_an_image", f"is not an image of {known}; fetch it again or convert it to PNG or JPEG"
