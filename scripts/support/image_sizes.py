"""Sizes of image files, from their headers."""

from __future__ import annotations

from pathlib import Path

from datasets.images.decode import ImageFile, inspect_image

MAX_PIXELS = 2_000_000_000


def display_size(path: Path) -> tuple[int, int]:
    """(height, width) px as viewers and browsers show it, with a camera's rotation undone. Raises DataError."""
    return inspect_image(ImageFile(path), max_pixels=MAX_PIXELS, limit="the limit of").size
