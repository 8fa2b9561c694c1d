"""Procedural aerial scenes full of tiny objects, with exact boxes: the data set that needs no download."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.canvas import Canvas
from datasets.synthetic.layouts import LAYOUTS, build
from datasets.synthetic.sprites import CLASS_NAMES

__all__ = ["CLASS_NAMES", "KINDS", "CountDistribution", "Scene", "make_scene"]

KINDS = tuple(LAYOUTS)


@dataclass(frozen=True)
class CountDistribution:
    """Objects per image: log-normal, rounded, limited to [min_count, max_count].

    The defaults give a median of about 15 and, at 800 px, up to 2,000 objects.
    """

    min_count: int = 1
    max_count: int = 2000
    mu: float = 2.6
    """Mean of the log of the count; each kind of scene shifts it by up to 1."""
    sigma: float = 1.25

    def __post_init__(self) -> None:
        if not 1 <= self.min_count <= self.max_count:
            raise ValueError(f"counts {self.min_count}..{self.max_count} are not 1 <= min_count <= max_count")
        if not (math.isfinite(self.mu) and self.sigma >= 0):
            raise ValueError(f"mu {self.mu}, sigma {self.sigma}: mu must be finite and sigma at least 0")

    def draw(self, rng: np.random.Generator, shift: float = 0.0) -> int:
        log_count = min(rng.normal(self.mu + shift, self.sigma), math.log(self.max_count))
        return int(np.clip(round(math.exp(log_count)), self.min_count, self.max_count))


@dataclass(frozen=True)
class Scene:
    """image (size, size, 3) uint8; boxes (N, 4) float32 xyxy px, inside the image; labels (N,) int64; its kind."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    kind: str


def make_scene(
    *,
    index: int,
    size: int = 256,
    seed: int = 0,
    counts: CountDistribution | None = None,
    kind: str | None = None,
) -> Scene:
    """Render scene number `index`, a function of (seed, index, size) and of the options alone.

    size    side of the image, px; at least 64
    counts  how many objects; a scene without room for all of them holds fewer
    kind    one of KINDS; drawn by its share if None

    Boxes are the exact extents of the visible part of each object, without its shadow, at least 2 px a side.
    """
    if size < 64:
        raise ValueError(f"size {size} is below 64 px, too small for a scene")
    if kind is not None and kind not in LAYOUTS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    rng = np.random.default_rng((seed, index, size))
    shares = np.array([layout.share for layout in LAYOUTS.values()])
    drawn = KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
    kind = kind or drawn
    count = (counts or CountDistribution()).draw(rng, LAYOUTS[kind].count_shift)
    scale = float(np.exp(rng.normal(-0.06, 0.22)))
    if count > 120 * (size / 256) ** 2:  # very dense scenes are seen from further away
        scale = min(scale, 1.0)
    canvas = build(LAYOUTS[kind], rng, size=size, count=count, scale=scale)
    return Scene(
        image=_expose(rng, canvas),
        boxes=np.array(canvas.boxes, np.float32).reshape(-1, 4),
        labels=np.array(canvas.labels, np.int64),
        kind=kind,
    )


def _expose(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """The camera: contrast, brightness, colour cast, blur and sensor noise."""
    light = canvas.image.astype(np.float32)
    light = (light - 118) * rng.uniform(0.8, 1.15) + 118 + rng.uniform(-14, 12)
    light *= rng.uniform(0.96, 1.04, 3).astype(np.float32)
    spread = rng.uniform(0.25, 0.75) * 0.28
    for axis in (0, 1):
        before, after = np.roll(light, 1, axis), np.roll(light, -1, axis)
        light = spread * (before + after) + (1 - 2 * spread) * light
    light += rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 5))
    return np.clip(light, 0, 255).astype(np.uint8)
