"""The picture under construction: what is drawn, what is occupied, and the boxes of the objects so far."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.sprites import DIMENSIONS, Colour, ObjectClass, Part, draw_sprite

_SUPERSAMPLING = 4
MIN_SIDE = 2.0
"""Least width and height of a box, px."""
_MIN_VISIBLE = 0.5
"""Least share of an object's box that lies inside the image."""


def rotation(angle: float) -> np.ndarray:
    """(2, 2): points (P, 2) @ rotation(angle) turns x towards y (downwards) by `angle` radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def extent(points: np.ndarray, size: int) -> tuple[float, float, float, float] | None:
    """xyxy of the part of a polygon (P, 2) that lies in [0, size]^2; None where nothing does."""
    corners = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size), -1), (1, 0.0, 1), (1, float(size), -1)):
        kept: list[tuple[float, float]] = []
        for here, there in zip(corners, corners[1:] + corners[:1], strict=True):
            inside, next_inside = sign * (here[axis] - limit) >= 0, sign * (there[axis] - limit) >= 0
            if inside:
                kept.append(here)
            if inside != next_inside:
                share = (limit - here[axis]) / (there[axis] - here[axis])
                crossing = [here[k] + share * (there[k] - here[k]) for k in (0, 1)]
                crossing[axis] = limit
                kept.append((crossing[0], crossing[1]))
        corners = kept
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


class Canvas:
    """A square picture with its objects.

    image     (size, size, 3) uint8
    occupied  (size, size) bool: objects and houses; nothing else may be drawn there
    paved     (size, size) bool: roads and lots; no house and no second lot there
    water     (size, size) bool
    """

    def __init__(self, rng: np.random.Generator, ground: np.ndarray, water: np.ndarray) -> None:
        self.rng, self.size = rng, len(ground)
        self.image = np.clip(ground, 0, 255).astype(np.uint8)
        self.water = water
        self.has_water = bool(water.any())
        self.occupied, self.paved = np.zeros_like(water), np.zeros_like(water)
        self.boxes: list[tuple[float, float, float, float]] = []
        self.labels: list[int] = []
        turn = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([math.cos(turn), math.sin(turn)])
        self.shadow_strength = rng.uniform(0.3, 0.5)

    def window(self, points: np.ndarray, outline: bool = False) -> tuple[slice, slice, np.ndarray]:
        """Rows, columns and the bool mask of a polygon within them, cut at the image's borders."""
        return self._mask([points], outline)

    def fill(
        self, points: np.ndarray, colour: Colour, *, alpha: float = 1.0, grain: float = 0.0, paved: bool = False
    ) -> None:
        """Paint a polygon; grain is the standard deviation of its speckle."""
        rows, columns, mask = self.window(points)
        if not mask.size:
            return
        paint = np.asarray(colour, np.float32)
        if grain:
            paint = paint + self.rng.normal(0, grain, (*mask.shape, 1)).astype(np.float32)
        below = self.image[rows, columns].astype(np.float32)
        mixed = np.where(mask[..., None], below * (1 - alpha) + paint * alpha, below)
        self.image[rows, columns] = np.clip(mixed, 0, 255).astype(np.uint8)
        if paved:
            self.paved[rows, columns] |= mask

    def lines(self, segments: np.ndarray, colour: Colour) -> None:
        """Draw (n, 2, 2) segments, one px wide."""
        picture = Image.fromarray(self.image)
        brush = ImageDraw.Draw(picture)
        for start, end in segments.tolist():
            brush.line([tuple(start), tuple(end)], fill=colour, width=1)
        self.image[:] = np.asarray(picture)

    def is_water(self, x: float, y: float) -> bool:
        last = self.size - 1
        return bool(self.water[int(min(max(y, 0), last)), int(min(max(x, 0), last))])

    def free_point(self, on_water: bool | None = None) -> np.ndarray:
        """A random point (x, y), if possible on water or on land as asked."""
        point = self.rng.uniform(0, self.size, 2)
        for _ in range(30):
            if on_water is None or self.is_water(*point) == on_water:
                break
            point = self.rng.uniform(0, self.size, 2)
        return point

    def place(
        self,
        kind: ObjectClass,
        x: float,
        y: float,
        angle: float,
        *,
        scale: float = 1.0,
        size: tuple[float, float] | None = None,
        gap: float = 0.5,
    ) -> bool:
        """Draw an object centred on (x, y); False, and nothing drawn, where it does not fit.

        scale  factor on the class's typical length
        size   exact (length, aspect) instead of a random specimen of the class
        gap    least distance to others, px

        It fits when ships lie on water and all others but bridges on land, when at least half of its box is inside
        the image with 2 px a side, and when it touches no other object.
        """
        typical, rng = DIMENSIONS[kind], self.rng
        length, aspect = size or (
            float(typical.length * scale * np.exp(rng.normal(0, typical.spread))),
            float(typical.aspect * np.exp(rng.normal(0, 0.08))),
        )
        column, row = math.floor(x), math.floor(y)
        if not (0 <= column < self.size and 0 <= row < self.size) or self.occupied[row, column]:
            return False
        if kind != ObjectClass.BRIDGE and self.water[row, column] != (kind == ObjectClass.SHIP):
            return False
        sprite = draw_sprite(rng, kind, aspect)
        turn = rotation(angle) * length
        parts = [Part(part.points @ turn + (x, y), part.colour, part.body) for part in sprite.parts]
        bodies = [part.points for part in parts if part.body]
        box = self._visible_box(bodies)
        if box is None:
            return False
        rows, columns, mask = self._mask(bodies, outline=gap > 0)
        if (self.occupied[rows, columns] & mask).any():
            return False
        self.occupied[rows, columns] |= mask
        self._render(parts, shadow=self.sun * sprite.shadow * length * 0.6, long=kind == ObjectClass.PERSON)
        self.boxes.append(box)
        self.labels.append(int(kind))
        return True

    def _visible_box(self, bodies: list[np.ndarray]) -> tuple[float, float, float, float] | None:
        points = np.concatenate(bodies)
        low, high = points.min(axis=0), points.max(axis=0)
        if (low >= 0).all() and (high <= self.size).all():
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        else:
            pieces = [piece for body in bodies if (piece := extent(body, self.size)) is not None]
            if not pieces:
                return None
            x0, y0, x1, y1 = zip(*pieces, strict=True)
            box = (min(x0), min(y0), max(x1), max(y1))
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) < MIN_SIDE or width * height < _MIN_VISIBLE * float(np.prod(high - low)):
            return None
        return box

    def _mask(self, polygons: list[np.ndarray], outline: bool) -> tuple[slice, slice, np.ndarray]:
        points = np.concatenate(polygons)
        left, top = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, self.size).tolist()
        right, bottom = np.clip(np.ceil(points.max(axis=0)).astype(int) + 2, 0, self.size).tolist()
        stencil = Image.new("1", (max(right - left, 1), max(bottom - top, 1)), 0)
        brush = ImageDraw.Draw(stencil)
        for polygon in polygons:
            corners = [(px - left, py - top) for px, py in polygon.tolist()]
            brush.polygon(corners, fill=1, outline=1 if outline else None)
        mask = np.asarray(stencil)[: bottom - top, : right - left]
        return slice(top, bottom), slice(left, right), mask

    def _render(self, parts: list[Part], shadow: np.ndarray, long: bool) -> None:
        """Draw shadow and parts over the window they touch, supersampled; `long` smears the shadow from the foot."""
        bodies = [part.points for part in parts if part.body]
        points = np.concatenate([*bodies, *(body + shadow for body in bodies)])
        low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, self.size)
        width, height = (high - low).tolist()
        view = self.image[low[1] : high[1], low[0] : high[0]]
        fine = view.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)

        def to_fine(polygon: np.ndarray) -> list[tuple[float, float]]:
            return [tuple(point) for point in ((polygon - low) * _SUPERSAMPLING).tolist()]

        if shadow.any():
            stencil = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), 0)
            brush = ImageDraw.Draw(stencil)
            for step in (0.25, 0.5, 0.75, 1.0) if long else (1.0,):
                for body in bodies:
                    brush.polygon(to_fine(body + shadow * step), fill=255)
            shade = np.asarray(stencil, np.float32)[..., None] / 255 * self.shadow_strength
            fine = (fine * (1 - shade)).astype(np.uint8)
        picture = Image.fromarray(fine)
        brush = ImageDraw.Draw(picture)
        for part in parts:
            brush.polygon(to_fine(part.points), fill=part.colour)
        view[:] = np.asarray(picture.reduce(_SUPERSAMPLING))
