"""Image files -> 8-bit RGB, or a DataError that says what is wrong with the file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.structures import DataError

# Modes that hold more than 8 bits per channel: converting them to RGB would saturate silently.
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_EXIF_ORIENTATION = 0x0112


def read_image(path: Path, *, size: tuple[int, int], entry: str) -> Image.Image:
    """Decode one image to RGB.

    size   (height, width) that the annotation file promises, px
    entry  where it promises it, for messages: "train.json: images[3] (id 17)"
    raises DataError for a missing, empty, truncated, foreign, too large or deep image, and for another size

    A camera's EXIF rotation is applied only where the rotated size is the promised one. An animation gives
    its first frame; palette, grey, CMYK and alpha become RGB.
    """
    try:
        with Image.open(path) as file:
            image = _with_size(file, path=path, size=size, entry=entry)
            if image.mode in _DEEP_MODES:
                raise DataError(
                    f"{path}: mode {image.mode} holds more than 8 bits per channel; convert it to 8-bit RGB "
                    f"with a value range of your choice (a blind conversion would saturate) ({entry})"
                )
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; check data.root and file_name ({entry})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut the image into tiles ({entry})") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: {_foreign_content(path)} ({entry})") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise all four
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot decode: {reason}; fetch the file again ({entry})") from None


def _with_size(image: Image.Image, *, path: Path, size: tuple[int, int], entry: str) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    if image.size == (height, width) and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
        return ImageOps.exif_transpose(image)
    raise DataError(
        f"{path}: is {image.width} x {image.height} px, but {entry} says width {width}, height {height}; "
        f"correct the annotation file or restore the image it was made from (boxes would be misplaced)"
    )


def _foreign_content(path: Path) -> str:
    head = path.read_bytes()[:64].lstrip() if path.stat().st_size < 10_000_000 else b"?"
    if not head:
        return "is empty (0 bytes); fetch the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not an image; run `git lfs pull`"
    if head[:1] == b"<":
        return "is a web page or XML, not an image; fetch the file again"
    return "is not an image that Pillow can read; fetch it again or convert it to PNG or JPEG"
