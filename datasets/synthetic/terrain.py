"""Ground of the procedural scenes: noise, land, coasts and rivers. Images are (size, size, 3) float32, 0..255."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# (mean colour, how far one unit of noise moves it)
_LAND = {
    "meadow": ((92, 104, 70), (20, 18, 13)),
    "steppe": ((128, 120, 96), (18, 17, 15)),
    "gravel": ((112, 112, 108), (15, 15, 15)),
    "sand": ((150, 133, 104), (16, 15, 13)),
    "forest": ((70, 88, 58), (16, 15, 11)),
}
_WATER = [((38, 62, 74), (7, 8, 9)), ((52, 78, 82), (6, 8, 8)), ((28, 46, 58), (6, 7, 9))]
_SHORE = (188, 178, 150)
DRY_LAND = ("steppe", "gravel", "sand")


def noise(rng: np.random.Generator, size: int, cell: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise (size, size) of about unit variance; its coarsest grain is `cell` px."""
    total, amplitude, power = np.zeros((size, size), np.float32), 1.0, 0.0
    for octave in range(octaves):
        grain = max(cell / 2**octave, 1.5)
        points = int(size / grain) + 3
        side = int(points * grain) + 1
        grid = Image.fromarray(rng.standard_normal((points, points)).astype(np.float32))
        smooth = np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
        top, left = rng.integers(0, side - size + 1, 2)
        total += amplitude * smooth[top : top + size, left : left + size]
        power += amplitude**2
        amplitude *= 0.55
    return total / math.sqrt(power)


def _tint(palette: tuple[tuple[int, int, int], tuple[int, int, int]], grain: np.ndarray) -> np.ndarray:
    mean, variation = (np.asarray(colour, np.float32) for colour in palette)
    return mean + grain[..., None] * variation


def land(rng: np.random.Generator, size: int, grounds: tuple[str, ...] = tuple(_LAND)) -> np.ndarray:
    """Ground of one of the named kinds, with patches of any kind and, at times, ploughed fields."""
    everywhere = list(_LAND)
    ground = grounds[int(rng.integers(len(grounds)))]
    image = _tint(_LAND[ground], noise(rng, size, 64, 4)) + noise(rng, size, 4, 2)[..., None] * 5
    if ground in ("meadow", "steppe") and rng.random() < 0.4:
        image = _plough(rng, image)
    patch = everywhere[int(rng.integers(len(everywhere)))]
    edge = np.clip((noise(rng, size, 90, 4) - 0.75) * 4, 0, 1)[..., None]  # soft border, a few px wide
    return image * (1 - edge) + _tint(_LAND[patch], noise(rng, size, 40, 4)) * edge


def _plough(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Rectangular fields of different colours with faint furrows, all along one direction."""
    size = len(image)
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(60, 130)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    column, row = np.floor(along / pitch).astype(int), np.floor(across / (pitch * 0.6)).astype(int)
    colours = (rng.normal(0, 11, (32, 32, 1)) + rng.normal(0, 4, (32, 32, 3))).astype(np.float32)
    fields = colours[column % 32, row % 32]
    furrows = np.sin(across * (2 * np.pi / rng.uniform(3.5, 6))) * rng.uniform(0.5, 3.5)
    hedge = (np.mod(across / (pitch * 0.6), 1) < 0.03) | (np.mod(along / pitch, 1) < 0.02)
    return image + fields + furrows[..., None] - hedge[..., None] * np.array([18, 12, 16], np.float32)


def coast(rng: np.random.Generator, size: int, level: float) -> np.ndarray:
    """Signed distance from a shore (size, size), in image sides, positive in the water; level -0.5..0.5 places it."""
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    return x * math.cos(turn) + y * math.sin(turn) + noise(rng, size, 70, 3) * 0.05 - level


def river(rng: np.random.Generator, size: int, width: float) -> np.ndarray:
    """As coast, for a winding river about `width` px wide that crosses the image."""
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    middle = x * math.cos(turn) + y * math.sin(turn) + noise(rng, size, 150, 1) * 0.07 - rng.uniform(-0.22, 0.22)
    return width / 2 / size - np.abs(middle) + noise(rng, size, 24, 2) * 1.2 / size


def flood(rng: np.random.Generator, image: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Paint water where `distance` is positive, with ripples, and a sandy shore 1-2 px wide."""
    size = len(image)
    water = _tint(_WATER[int(rng.integers(len(_WATER)))], noise(rng, size, 14, 3) + noise(rng, size, 3, 1) * 0.5)
    depth = np.clip(distance * size / 14, 0, 1)[..., None]
    image = np.where((distance > 0)[..., None], water + (1 - depth) * np.array([16, 18, 12], np.float32), image)
    shore = np.abs(distance) < 1.7 / size
    return np.where(shore[..., None], np.array(_SHORE, np.float32), image)
