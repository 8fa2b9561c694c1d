"""Sheets of small images and lines of text: what galleries and pictures of predictions are made of."""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Line = list[str | Image.Image]
"""Of text; small images (colour keys) stand between the words"""

PAPER: Colour = (255, 255, 255)
INK: Colour = (25, 25, 25)

# Nine anchors of the "inferno" colour map (S. van der Walt and N. Smith, CC0): lightness rises evenly with the value.
_INFERNO = "000004 1f0c48 550f6d 88226a ba3655 e35933 f98c0a f9c932 fcffa4"


def colour_map(values: ArrayLike) -> NDArray[np.uint8]:
    """(...) values in [0, 1], clipped -> (..., 3) RGB of the colour map "inferno"."""
    clipped = np.clip(np.asarray(values, np.float64), 0.0, 1.0)
    anchors = np.frombuffer(bytes.fromhex(_INFERNO), np.uint8).reshape(-1, 3)
    places = np.linspace(0.0, 1.0, len(anchors))
    return np.stack([np.interp(clipped, places, channel) for channel in anchors.T], axis=-1).round().astype(np.uint8)


def resized(image: NDArray[np.uint8], scale: float) -> Image.Image:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def swatch(colour: Colour) -> str | Image.Image:
    return Image.new("RGB", (14, 14), colour)


def colour_bar() -> str | Image.Image:
    return Image.fromarray(np.broadcast_to(colour_map(np.linspace(0, 1, 120)), (14, 120, 3)).copy())


def text_line(items: Line, size: int) -> Image.Image:
    """Words and small images in a row, centred on one height."""
    face, space, height = font(size), size // 3, round(size * 1.4)
    widths = [int(face.getlength(item)) + 1 if isinstance(item, str) else item.width for item in items]
    paper = Image.new("RGB", (sum(widths) + space * len(items), height), PAPER)
    draw, left = ImageDraw.Draw(paper), 0
    for item, width in zip(items, widths, strict=True):
        if isinstance(item, str):
            draw.text((left, height // 2), item, fill=INK, font=face, anchor="lm")
        else:
            paper.paste(item, (left, (height - item.height) // 2))
        left += width + space
    return paper


def _join(images: Sequence[Image.Image], *, axis: int, gap: int) -> Image.Image:
    size = [max(image.width for image in images), max(image.height for image in images)]
    size[axis] = sum(image.size[axis] + gap for image in images) - gap
    paper, corner = Image.new("RGB", (size[0], size[1]), PAPER), [0, 0]
    for image in images:
        paper.paste(image, (corner[0], corner[1]))
        corner[axis] += image.size[axis] + gap
    return paper


beside, stack = partial(_join, axis=0), partial(_join, axis=1, gap=4)
