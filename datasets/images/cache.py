"""Cache of decoded images in memory: a small set is decoded once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MAX_SHARE = 0.8
"""Share of the available memory; training needs some too."""


class CacheTooLargeError(Exception):
    """The message names needed and available memory."""


class ImageCache:
    """N decoded images as one array, which loader workers share with the process that forked them.

    sizes    (N, 2)  int64 (height, width), px
    read     index -> RGB image of that size; called for every image, from `threads` threads
    copies   processes on this machine with such a cache
    raises   CacheTooLargeError before anything is read, and what `read` raises
    """

    def __init__(self, *, sizes: np.ndarray, read: Callable[[int], Image.Image], threads: int, copies: int = 1) -> None:
        self.sizes = sizes
        self.starts = np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])
        _check_room(int(self.starts[-1]), copies=copies)
        self.pixels = np.empty(self.starts[-1], dtype=np.uint8)

        def fill(index: int) -> None:
            self._view(index)[:] = np.asarray(read(index))

        with ThreadPoolExecutor(max_workers=threads) as pool:
            for _ in pool.map(fill, range(len(sizes))):
                pass

    def __getitem__(self, index: int) -> Image.Image:
        """A copy of the image."""
        return Image.fromarray(self._view(index))

    def _view(self, index: int) -> np.ndarray:
        start, end = self.starts[index : index + 2].tolist()
        return self.pixels[start:end].reshape(*self.sizes[index].tolist(), 3)


def available_bytes() -> int | None:
    """Available memory, within a container's limit; None without Linux's files.

    Source: proc(5), MemAvailable; cgroups(7), version 2.
    """
    try:
        available = 1024 * _entry(Path("/proc/meminfo"), "MemAvailable:")
    except (OSError, KeyError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, max(int(limit) - _entry(group / "memory.stat", "anon"), 0))
    except (OSError, KeyError):
        pass  # no control group of version 2
    return available


def _entry(file: Path, key: str) -> int:
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}[key]


def _check_room(needed: int, *, copies: int) -> None:
    available = available_bytes()
    if available is None or needed * copies <= MAX_SHARE * available:
        return
    several = f" in each of {copies} processes" if copies > 1 else ""
    raise CacheTooLargeError(
        f"needs {needed / 2**30:.2f} GiB{several}, but of the {available / 2**30:.2f} GiB available at most "
        f"{MAX_SHARE:.0%} may hold images"
    )
