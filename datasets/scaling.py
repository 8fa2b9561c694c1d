"""How much data.image_size scales an image."""

import numpy as np


def resized_shape(height: int, width: int, *, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image fitted inside `size` (unordered: long side to long side), ratio kept.

    Source: mmcv.imrescale; a side never falls below 1 px.
    """
    scale = min(max(size) / max(height, width), min(size) / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def size_factors(image_sizes: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """(I,) by how much sqrt(w*h) of an object grows when its image, (I, 2) height and width px, is fitted in `size`."""
    kinds, kind_of = np.unique(image_sizes, axis=0, return_inverse=True)
    shapes = np.array([resized_shape(height, width, size=size) for height, width in kinds.tolist()])
    factors: np.ndarray = np.sqrt((shapes / kinds).prod(axis=1))[kind_of.reshape(-1)]
    return factors
