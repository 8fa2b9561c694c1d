"""The eight object classes of the procedural scenes, as polygons seen from above.

A sprite is drawn in units of its own length: x points forward, the object spans about [-0.5, 0.5].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]


class ObjectClass(IntEnum):
    """Labels 0..7, in AI-TOD's order."""

    AIRPLANE = 0
    BRIDGE = 1
    STORAGE_TANK = 2
    SHIP = 3
    SWIMMING_POOL = 4
    VEHICLE = 5
    PERSON = 6
    WIND_MILL = 7


CLASS_NAMES = tuple(kind.name.lower().replace("_", "-") for kind in ObjectClass)


class Dimensions(NamedTuple):
    """Typical length in px before the scene's scale, aspect = width / length, spread of log length."""

    length: float
    aspect: float
    spread: float = 0.10


DIMENSIONS = {
    ObjectClass.AIRPLANE: Dimensions(23.0, 0.95, 0.16),
    ObjectClass.BRIDGE: Dimensions(30.0, 0.30),
    ObjectClass.STORAGE_TANK: Dimensions(15.0, 1.0),
    ObjectClass.SHIP: Dimensions(20.0, 0.34, 0.18),
    ObjectClass.SWIMMING_POOL: Dimensions(13.0, 0.6),
    ObjectClass.VEHICLE: Dimensions(14.8, 0.47),
    ObjectClass.PERSON: Dimensions(7.4, 0.62),
    ObjectClass.WIND_MILL: Dimensions(24.0, 0.9),
}


class Part(NamedTuple):
    """One filled polygon, points (P, 2); a body part casts a shadow and counts for the box."""

    points: np.ndarray
    colour: Colour
    body: bool = True


class Sprite(NamedTuple):
    """Parts from bottom to top, and the shadow's reach in units of the length."""

    parts: list[Part]
    shadow: float


def rectangle(length: float, width: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Corners (4, 2) of a rectangle centred on (x, y), its length along x."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2) + (x, y)


def ellipse(radius_x: float, radius_y: float, x: float = 0.0, y: float = 0.0, corners: int = 16) -> np.ndarray:
    """Corners (corners, 2) of an ellipse centred on (x, y)."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)], axis=1)


def grey(rng: np.random.Generator, low: int, high: int) -> Colour:
    """A nearly neutral colour of random brightness in [low, high)."""
    level = int(rng.integers(low, high))
    red, green, blue = (min(max(level + shift, 0), 255) for shift in rng.integers(-6, 7, 3).tolist())
    return red, green, blue


def pick(rng: np.random.Generator, colours: list[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _lighter(colour: Colour, amount: int) -> Colour:
    red, green, blue = (min(max(channel + amount, 0), 255) for channel in colour)
    return red, green, blue


def _airplane(rng: np.random.Generator, aspect: float) -> Sprite:
    colour, sweep, span = grey(rng, 205, 250), rng.uniform(0.16, 0.30), aspect / 2
    half_wing = np.array([[0.10, 0.06], [-0.12 - sweep / 2, span], [-0.24 - sweep / 2, span], [-0.12, 0.05]])
    half_tail = np.array([[-0.36, 0.03], [-0.47, 0.17], [-0.5, 0.17]])
    wings, tail = (np.concatenate([half, half[::-1] * (1, -1)]) for half in (half_wing, half_tail))
    parts = [Part(wings, colour), Part(tail, colour)]
    for side in (-1, 1):
        parts.append(Part(rectangle(0.13, 0.06, -0.03 - sweep / 4, side * span * 0.45), grey(rng, 110, 170), False))
    parts.append(Part(ellipse(0.5, 0.075, corners=18), grey(rng, 225, 255)))
    return Sprite(parts, shadow=0.10)


def _bridge(rng: np.random.Generator, aspect: float) -> Sprite:
    deck = [
        Part(rectangle(1, aspect), grey(rng, 160, 215)),
        Part(rectangle(1, aspect * 0.68), grey(rng, 90, 125), False),
        Part(rectangle(1, aspect * 0.06), (228, 222, 196), False),
    ]
    return Sprite(deck, shadow=0.10)


def _storage_tank(rng: np.random.Generator, aspect: float) -> Sprite:
    colour = grey(rng, 190, 250) if rng.random() < 0.8 else grey(rng, 110, 150)
    roof = ellipse(0.4, 0.4, -0.03, -0.03)
    parts = [
        Part(ellipse(0.5, 0.5, corners=20), colour),
        Part(roof, _lighter(colour, 14), False),
        Part(ellipse(0.1, 0.1, *rng.uniform(-0.12, 0.12, 2)), grey(rng, 120, 170), False),
    ]
    return Sprite(parts, shadow=0.28)


def _ship(rng: np.random.Generator, aspect: float) -> Sprite:
    half = np.array([[0.5, 0], [0.30, 0.425], [0, 0.5], [-0.45, 0.45], [-0.5, 0.3]]) * (1, aspect)
    hull = np.concatenate([half, half[:0:-1] * (1, -1)])
    pale = rng.random() < 0.7
    colour = grey(rng, 200, 250) if pale else pick(rng, [(120, 60, 50), (70, 80, 100), (60, 95, 90)])
    parts = [
        Part(hull, colour),
        Part(hull * (0.8, 0.66), _lighter(colour, -28), False),
        Part(rectangle(0.30, aspect * 0.5, -0.22), grey(rng, 150, 240), False),
        Part(rectangle(0.22, aspect * 0.4, 0.12), grey(rng, 90, 160), False),
    ]
    return Sprite(parts, shadow=0.05)


def _swimming_pool(rng: np.random.Generator, aspect: float) -> Sprite:
    water = (int(rng.integers(40, 95)), int(rng.integers(165, 215)), int(rng.integers(205, 245)))
    basin = rectangle(0.86, aspect * 0.8) if rng.random() < 0.5 else ellipse(0.43, aspect * 0.4, corners=14)
    shallow = basin * 0.5 + (0.16, 0)
    rim = Part(basin * (1.16, 1.2), grey(rng, 205, 235))
    return Sprite([rim, Part(basin, water), Part(shallow, _lighter(water, 16), False)], shadow=0.0)


def _vehicle(rng: np.random.Generator, aspect: float) -> Sprite:
    paints = [grey(rng, 215, 252)] * 2 + [grey(rng, 20, 60), grey(rng, 120, 165)]
    colour = pick(rng, [*paints, (165, 38, 36), (42, 62, 130), (190, 170, 60)])
    glass = (28, 32, 40) if sum(colour) > 240 else (120, 128, 138)
    body = Part(rectangle(1, aspect), colour)
    if rng.random() < 0.12:  # a van or a truck: cab in front, load behind
        cab = Part(rectangle(0.24, aspect * 0.9, 0.38), _lighter(colour, -50), False)
        return Sprite([body, cab, Part(rectangle(0.04, aspect * 0.9, 0.25), (30, 30, 34), False)], shadow=0.22)
    windows = [Part(rectangle(0.16, aspect * 0.82, 0.17), glass, False)]
    windows.append(Part(rectangle(0.12, aspect * 0.82, -0.33), glass, False))
    return Sprite([body, *windows], shadow=0.16)


def _person(rng: np.random.Generator, aspect: float) -> Sprite:
    clothes = pick(rng, [(200, 60, 60), (60, 70, 160), (235, 235, 235), (40, 40, 45), (220, 190, 60)])
    hair = (60, 45, 38) if rng.random() < 0.7 else (225, 200, 170)
    shoulders, head = ellipse(0.5, aspect / 2, corners=12), ellipse(0.2, 0.2, corners=8)
    return Sprite([Part(shoulders, clothes), Part(head, hair)], shadow=0.9)


def _wind_mill(rng: np.random.Generator, aspect: float) -> Sprite:
    first, parts = rng.uniform(0, 2 * np.pi), []
    for blade in range(3):
        turn = first + blade * 2 * np.pi / 3
        along = np.array([math.cos(turn), math.sin(turn)])
        across = np.array([-along[1], along[0]])
        tip = along * 0.56
        outline = [across * 0.045, tip + across * 0.012, tip - across * 0.012, -across * 0.045]
        parts.append(Part(np.stack(outline), (248, 248, 250)))
    return Sprite([*parts, Part(ellipse(0.08, 0.08, corners=10), (225, 225, 228))], shadow=1.1)


_DRAWERS: dict[ObjectClass, Callable[[np.random.Generator, float], Sprite]] = {
    ObjectClass.AIRPLANE: _airplane,
    ObjectClass.BRIDGE: _bridge,
    ObjectClass.STORAGE_TANK: _storage_tank,
    ObjectClass.SHIP: _ship,
    ObjectClass.SWIMMING_POOL: _swimming_pool,
    ObjectClass.VEHICLE: _vehicle,
    ObjectClass.PERSON: _person,
    ObjectClass.WIND_MILL: _wind_mill,
}


def draw_sprite(rng: np.random.Generator, kind: ObjectClass, aspect: float) -> Sprite:
    """A random specimen of the class, width / length = aspect where the class has a width."""
    return _DRAWERS[kind](rng, aspect)
